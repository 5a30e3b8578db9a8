package vmlink

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/responder"
)

// The two ends of the way to the DHCP servers, in the VM's directory: ours, and
// that of the agent, which has the sockets towards the network. Both are datagram
// sockets without a connection, so either side can end and start again unnoticed.
const (
	relaySocket  = "relay.sock"
	uplinkSocket = "uplink.sock"
)

// relayConn is our end.
type relayConn struct {
	fd   int
	file *os.File
	raw  syscall.RawConn
	to   unix.SockaddrUnix
	in   [responder.RelayHeader + responder.MaxRelayed + 1]byte
}

// openRelay binds the socket. One that is there is of a predecessor that is dead.
func openRelay(dir string) (*relayConn, error) {
	path := filepath.Join(dir, relaySocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return nil, fmt.Errorf("remove the predecessor's relay socket: %w", err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the relay socket: %w", err)
	}
	r := &relayConn{fd: fd, file: os.NewFile(uintptr(fd), path), to: unix.SockaddrUnix{Name: filepath.Join(dir, uplinkSocket)}}
	if err = unix.Bind(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		if err = os.Chmod(path, 0o600); err == nil {
			r.raw, err = r.file.SyscallConn()
		}
	}
	if err != nil {
		_ = r.file.Close()
		return nil, fmt.Errorf("bind the relay socket %s: %w", path, err)
	}
	return r, nil
}

// WriteMessage hands a message to the agent or fails at once: while the agent
// does not run, the guest's client tries again.
func (r *relayConn) WriteMessage(b []byte) error {
	return unix.Sendto(r.fd, b, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, &r.to)
}

// serve hands what the agent sends to the NICs' servers until ctx ends.
func (r *relayConn) serve(ctx context.Context, nics []nic) error {
	stop := context.AfterFunc(ctx, func() { _ = r.file.Close() })
	defer stop()
	var n int
	var failed error
	read := func(fd uintptr) bool {
		n, failed = unix.Read(int(fd), r.in[:])
		return failed != unix.EAGAIN
	}
	for {
		if err := r.raw.Read(read); err != nil {
			if ctx.Err() != nil {
				return nil
			}
			return fmt.Errorf("wait on the relay socket: %w", err)
		}
		if failed != nil && !errors.Is(failed, unix.EINTR) {
			return fmt.Errorf("read from the relay socket: %w", failed)
		}
		b := r.in[:max(n, 0)]
		if failed != nil || len(b) < responder.RelayHeader || len(b) == len(r.in) || b[0] != responder.RelayVersion || int(b[1]) >= len(nics) {
			continue
		}
		nics[b[1]].server.Deliver(b[2], b[3], b[responder.RelayHeader:])
	}
}

func (r *relayConn) close() {
	if r != nil {
		_ = r.file.Close()
	}
}
