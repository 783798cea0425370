//go:build unix

package memcachedtest

import (
	"os"
	"os/exec"
	"strconv"
	"syscall"
)

// process is a child process that never outlives the test binary.
//
// A guard sees to that: a shell that waits for the end of its standard input,
// a pipe whose other end only the test binary holds, and then kills the child and
// removes its directory. The kernel closes the pipe however the binary ends,
// SIGKILL included. Linux's Pdeathsig would need a goroutine for each child, locked
// to the thread that started it (its signal goes out when that thread ends),
// which every goroutine-leak check would see; and macOS has nothing like it.
//
// The process ID is valid until the child is reaped, which only kill and
// exited do. Not safe for concurrent use.
type process struct {
	pid    int
	reaped bool
	guard  *exec.Cmd
}

// tempDir is where scratch directories are made: a Unix socket's path must fit
// into about 100 bytes, and TMPDIR alone may be longer.
const tempDir = "/tmp"

// guardScript ignores a terminal's Ctrl-C, which reaches it as well.
const guardScript = `trap '' HUP INT QUIT TERM; read -r _; kill -9 "$1"; rm -rf "$2"`

func startProcess(bin string, args []string, stderr *os.File, dir string) (*process, error) {
	cmd := exec.Command(bin, args...)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	p := &process{pid: cmd.Process.Pid}
	// os.Process cannot look for the child's end without waiting for it.
	_ = cmd.Process.Release()

	p.guard = exec.Command("/bin/sh", "-c", guardScript, "sh", strconv.Itoa(p.pid), dir)
	_, err := p.guard.StdinPipe() // open for as long as p.guard is reachable
	if err == nil {
		err = p.guard.Start()
	}
	if err != nil {
		p.guard = nil
		p.kill()
		return nil, err
	}
	return p, nil
}

// exited reports whether the process has ended.
func (p *process) exited() bool {
	if !p.reaped {
		p.wait(syscall.WNOHANG)
	}
	return p.reaped
}

// kill ends the process, stopped or not, and waits for its end.
func (p *process) kill() {
	if p.reaped {
		return
	}
	_ = syscall.Kill(p.pid, syscall.SIGKILL)
	// The guard goes first: after the wait, the ID may be another process's.
	p.dismissGuard()
	p.wait(0)
}

// stop freezes the process and waits until all its threads stand.
func (p *process) stop() error {
	if p.exited() {
		return nil
	}
	err := syscall.Kill(p.pid, syscall.SIGSTOP)
	if err == nil {
		p.wait(syscall.WUNTRACED)
	}
	return err
}

func (p *process) cont() error {
	if p.exited() {
		return nil
	}
	return syscall.Kill(p.pid, syscall.SIGCONT)
}

func (p *process) wait(options int) {
	var status syscall.WaitStatus
	for {
		pid, err := syscall.Wait4(p.pid, &status, options, nil)
		if err == syscall.EINTR {
			continue
		}
		if err != nil || pid == p.pid && !status.Stopped() {
			p.reaped = true
			p.dismissGuard()
		}
		return
	}
}

func (p *process) dismissGuard() {
	if p.guard != nil {
		_ = p.guard.Process.Kill()
		_ = p.guard.Wait()
		p.guard = nil
	}
}
