package memcachedtest

import (
	"errors"
	"os"
	"os/exec"
	"syscall"
)

// process is a child process. Nothing guards it here: it outlives a test binary
// that is killed. Not safe for concurrent use.
type process struct {
	pid int
	cmd *exec.Cmd
}

// tempDir is the system's.
const tempDir = ""

func startProcess(bin string, args []string, stderr *os.File, _ string) (*process, error) {
	cmd := exec.Command(bin, args...)
	cmd.Stderr = stderr
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	return &process{pid: cmd.Process.Pid, cmd: cmd}, nil
}

// exited reports whether the process has ended. The process ID is its own for as
// long as nobody has waited for it.
func (p *process) exited() bool {
	if p.cmd.ProcessState != nil {
		return true
	}
	handle, err := syscall.OpenProcess(syscall.SYNCHRONIZE, false, uint32(p.pid))
	if err != nil {
		return true
	}
	defer syscall.CloseHandle(handle)
	event, err := syscall.WaitForSingleObject(handle, 0)
	return err == nil && event == syscall.WAIT_OBJECT_0
}

// kill ends the process and waits for its end.
func (p *process) kill() {
	_ = p.cmd.Process.Kill()
	_ = p.cmd.Wait()
}

var errNoSignals = errors.New("a process cannot be frozen on Windows")

func (p *process) stop() error { return errNoSignals }
func (p *process) cont() error { return errNoSignals }
