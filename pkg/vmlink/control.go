package vmlink

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"time"
)

const (
	socketFile = "responder.sock"

	// A client gets one line of maxLine bytes and lineTime for it, and for
	// taking the answer; maxClients are served at once, the rest wait. Only
	// root can connect: this is against accidents.
	maxLine    = 64
	lineTime   = 2 * time.Second
	maxClients = 4
)

// failure is the answer to a request that could not be carried out.
type failure struct {
	Error string `json:"error"`
}

// controlServer answers lines on the VM's socket.
type controlServer struct {
	listener *net.UnixListener
	answer   func(line string) (any, error)
}

// listenControl binds the socket. One that is there is of a predecessor that is
// dead: the caller holds the directory's lock.
func listenControl(dir string, answer func(string) (any, error)) (*controlServer, error) {
	path := filepath.Join(dir, socketFile)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the predecessor's socket: %w", err)
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("bind the control socket: %w", err)
	}
	// After the change of user the process can't remove it, and may not try.
	l.SetUnlinkOnClose(false)
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("set the mode of the control socket: %w", err)
	}
	return &controlServer{listener: l, answer: answer}, nil
}

func (s *controlServer) close() { _ = s.listener.Close() }

// serve answers until ctx ends (nil) or an answer says that the process has to
// end.
func (s *controlServer) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	wg.Go(func() {
		<-ctx.Done()
		_ = s.listener.Close()
	})
	places := make(chan struct{}, maxClients)
	for {
		conn, err := s.listener.AcceptUnix()
		if err != nil {
			if ctx.Err() == nil {
				cancel(fmt.Errorf("accept on the control socket: %w", err))
			}
			break
		}
		places <- struct{}{}
		wg.Go(func() {
			defer func() { <-places }()
			if err := s.talk(ctx, conn); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// talk serves one client. A client that breaks off or is slow is not an error.
func (s *controlServer) talk(ctx context.Context, conn *net.UnixConn) error {
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	buf, n := make([]byte, maxLine), 0
	for ctx.Err() == nil {
		if err := conn.SetDeadline(time.Now().Add(lineTime)); err != nil {
			return nil
		}
		line, rest, ok := bytes.Cut(buf[:n], []byte("\n"))
		for !ok {
			if n == len(buf) {
				return nil
			}
			m, err := conn.Read(buf[n:])
			if err != nil {
				return nil
			}
			n += m
			line, rest, ok = bytes.Cut(buf[:n], []byte("\n"))
		}
		reply, verdict := s.answer(string(line))
		n = copy(buf, rest)
		text, err := json.Marshal(reply)
		if err != nil {
			return fmt.Errorf("encode the answer to a request: %w", err)
		}
		_, err = conn.Write(append(text, '\n'))
		if verdict != nil || err != nil {
			return verdict
		}
	}
	return nil
}
