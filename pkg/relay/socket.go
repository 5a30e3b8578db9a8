package relay

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// The two ends in a VM's directory, ours and the responder's.
const (
	uplinkSocket = "uplink.sock"
	relaySocket  = "relay.sock"
)

var credentialSpace = unix.CmsgSpace(unix.SizeofUcred)

// open binds our end in the VM's directory. Anybody may write to it, which the
// kernel then says with each message: responders run as an account that owns
// nothing.
func (r *Relay) open(v VM) (*vm, error) {
	path := filepath.Join(v.Dir, uplinkSocket)
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("relay of VM %s: remove the last agent's socket: %w", v.UUID, err)
	}
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, fmt.Errorf("relay of VM %s: %w", v.UUID, err)
	}
	raw, err := c.SyscallConn()
	if err == nil {
		var failed error
		err = raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PASSCRED, 1) })
		err = errors.Join(err, failed, os.Chmod(path, 0o666))
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("relay of VM %s: %w", v.UUID, err)
	}
	out := &vm{VM: v, conn: c, raw: raw}
	r.wg.Go(func() { r.fromVM(out) })
	return out, nil
}

// send hands a message to the responder, or drops it when that does not read.
func (v *vm) send(message []byte) {
	to := &unix.SockaddrUnix{Name: filepath.Join(v.Dir, relaySocket)}
	_ = v.raw.Control(func(fd uintptr) { _ = unix.Sendto(int(fd), message, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to) })
}

// here tells whether the socket's file is still there.
func here(v *vm) bool {
	_, err := os.Lstat(filepath.Join(v.Dir, uplinkSocket))
	return err == nil
}

// sender is the user that the kernel says has sent a message.
func sender(oob []byte) (uid uint32, ok bool) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return 0, false
	}
	for i := range messages {
		if c, err := unix.ParseUnixCredentials(&messages[i]); err == nil {
			return c.Uid, true
		}
	}
	return 0, false
}

// listenUDP opens a socket at one of our addresses.
func listenUDP(at netip.AddrPort) (*net.UDPConn, error) {
	config := net.ListenConfig{Control: func(_, _ string, raw syscall.RawConn) error {
		var failed error
		err := raw.Control(func(fd uintptr) { failed = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) })
		return errors.Join(err, failed)
	}}
	c, err := config.ListenPacket(context.Background(), "udp", at.String())
	if err != nil {
		return nil, err
	}
	return c.(*net.UDPConn), nil
}
