package pool

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"strings"

	"github.com/xraph/grove/kv/drivers/memcacheddriver/internal/protocol"
)

// ErrAuth is in the chain of a call's error when the server refused the user or
// the password.
var ErrAuth = errors.New("authentication refused")

var errNoCredentials = fmt.Errorf("%w: the server asks for a user and a password; give them by WithCredentials", ErrAuth)

// authenticate logs in by memcached's ASCII authentication: a set of any key,
// whose value is user and password (protocol.txt, "Authentication"). A server
// that asks for none would store that value for all to read, so it is asked
// first.
func (s *Server) authenticate(nc net.Conn) error {
	r := bufio.NewReaderSize(nc, protocol.MaxLine)
	ask := func(request string) (string, error) {
		if _, err := nc.Write([]byte(request)); err != nil {
			return "", fmt.Errorf("authentication: %w", err)
		}
		line, err := protocol.Line(r)
		if err != nil {
			return "", fmt.Errorf("authentication: %w", err)
		}
		return string(line), nil
	}
	line, err := ask("version\r\n")
	if err != nil {
		return err
	}
	if strings.HasPrefix(line, "VERSION") {
		if s.openAccess.CompareAndSwap(false, true) {
			s.cfg.Warnf("memcacheddriver: server %s asks for no authentication; the credentials were not sent", s.Address)
		}
		return nil
	}
	var reply *protocol.ReplyError
	if err := protocol.LineError([]byte(line)); !errors.As(err, &reply) || !reply.Unauthenticated() {
		s.HideCredentials(err)
		return fmt.Errorf("authentication: %w", err)
	}
	secret := s.cfg.User + " " + s.cfg.Password
	line, err = ask(fmt.Sprintf("set auth 0 0 %d\r\n%s\r\n", len(secret), secret))
	if err != nil {
		return err
	}
	if line != "STORED" {
		return fmt.Errorf("%w: check the user and the password", ErrAuth)
	}
	return nil
}

// HideCredentials takes the user and the password out of an error line of the
// server's in err's chain, which may quote what was sent. It comes after all that
// the line is looked at for, and before it is made part of a text.
func (s *Server) HideCredentials(err error) {
	var reply *protocol.ReplyError
	if s.cfg.User == "" || !errors.As(err, &reply) {
		return
	}
	hide := []string{s.cfg.User, "[hidden]"}
	if s.cfg.Password != "" {
		hide = append([]string{s.cfg.Password, "[hidden]"}, hide...) // first, as the user may be a part of it
	}
	reply.Line = strings.NewReplacer(hide...).Replace(reply.Line)
}
