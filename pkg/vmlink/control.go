package vmlink

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

const (
	socketFile = "responder.sock"

	// Clients are served one after the other. Each has patience to send a line
	// of at most maxLine bytes and to take the answer, so one that is stuck holds
	// the next ones up and nobody else. Only root can connect.
	maxLine  = 64
	patience = time.Second
	backlog  = 16
)

// controlServer answers lines on the VM's socket. It works on bare descriptors
// and kept buffers, because it is asked for ever: with package net each request
// leaves a kilobyte behind, and the first collection costs a small process more
// than all that it has.
type controlServer struct {
	file *os.File
	raw  syscall.RawConn
	// answer appends the reply to a line. An error ends the server after the
	// reply was sent.
	answer func(reply []byte, line string) ([]byte, error)

	line  [maxLine]byte
	reply []byte
	poll  [1]unix.PollFd
}

// listenControl binds the socket. One that is there is of a predecessor that is
// dead: the caller holds the directory's lock.
func listenControl(dir string, answer func([]byte, string) ([]byte, error)) (*controlServer, error) {
	path := filepath.Join(dir, socketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the predecessor's socket: %w", err)
	}
	s, err := listen(path)
	if err != nil {
		return nil, fmt.Errorf("bind the control socket %s: %w", path, err)
	}
	s.answer = answer
	return s, nil
}

func listen(path string) (*controlServer, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	s := &controlServer{file: os.NewFile(uintptr(fd), path), reply: make([]byte, 0, 4096)}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = os.Chmod(path, 0o660)
	}
	if err == nil {
		err = unix.Listen(fd, backlog) // only from now on can anyone connect
	}
	if err == nil {
		s.raw, err = s.file.SyscallConn()
	}
	if err != nil {
		s.close()
		return nil, err
	}
	return s, nil
}

// close leaves the file: its removal takes the rights of its maker.
func (s *controlServer) close() { _ = s.file.Close() }

// serve answers until ctx ends (nil) or an answer comes with an error.
func (s *controlServer) serve(ctx context.Context) error {
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { s.close(); close(closed) })
	err := s.accept()
	if !stop() {
		<-closed
		return nil
	}
	return err
}

func (s *controlServer) accept() error {
	var conn int
	var failed error
	next := func(fd uintptr) bool {
		r, _, errno := unix.Syscall6(unix.SYS_ACCEPT4, fd, 0, 0, unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0, 0)
		switch errno {
		case 0:
			conn, failed = int(r), nil
		case unix.EAGAIN:
			return false
		default:
			conn, failed = -1, errno
		}
		return true
	}
	for {
		if err := s.raw.Read(next); err != nil {
			return fmt.Errorf("wait on the control socket: %w", err)
		}
		switch {
		case failed == nil:
		case errors.Is(failed, unix.EINTR), errors.Is(failed, unix.ECONNABORTED):
			continue
		default:
			return fmt.Errorf("accept on the control socket: %w", failed)
		}
		err := s.talk(conn)
		_ = unix.Close(conn)
		if err != nil {
			return err
		}
	}
}

// talk serves one client, which may send several lines. That it breaks off or is
// slow is no error.
func (s *controlServer) talk(conn int) error {
	deadline := time.Now().Add(patience)
	have := 0
	for {
		line, rest, ok := bytes.Cut(s.line[:have], []byte{'\n'})
		for !ok {
			if have == len(s.line) || !s.wait(conn, unix.POLLIN, deadline) {
				return nil
			}
			n, err := unix.Read(conn, s.line[have:])
			if err != nil && !again(err) || err == nil && n == 0 {
				return nil
			}
			have += max(n, 0)
			line, rest, ok = bytes.Cut(s.line[:have], []byte{'\n'})
		}
		reply, verdict := s.answer(s.reply[:0], request(line))
		have = copy(s.line[:], rest)
		s.reply = append(reply, '\n')
		deadline = time.Now().Add(patience)
		for unsent := s.reply; len(unsent) > 0; {
			if !s.wait(conn, unix.POLLOUT, deadline) {
				return verdict
			}
			n, err := unix.Write(conn, unsent)
			if err != nil && !again(err) {
				return verdict
			}
			unsent = unsent[max(n, 0):]
		}
		if verdict != nil {
			return verdict
		}
	}
}

// request makes a string of a line, for the known ones without an allocation.
func request(line []byte) string {
	switch string(line) {
	case "status":
		return "status"
	case "reload":
		return "reload"
	}
	return string(line)
}

func again(err error) bool { return err == unix.EAGAIN || err == unix.EINTR }

// wait tells whether the client is ready before the deadline.
func (s *controlServer) wait(conn int, events int16, deadline time.Time) bool {
	for {
		left := time.Until(deadline)
		if left <= 0 {
			return false
		}
		s.poll[0] = unix.PollFd{Fd: int32(conn), Events: events}
		timeout := unix.NsecToTimespec(left.Nanoseconds())
		n, err := unix.Ppoll(s.poll[:], &timeout, nil)
		if err == nil {
			return n > 0
		}
		if !again(err) {
			return false
		}
	}
}
