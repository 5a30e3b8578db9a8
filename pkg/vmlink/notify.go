package vmlink

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// notifier tells systemd that the process is ready (sd_notify(3)). Its socket is
// connected while the process may still do that. The zero value tells nobody.
type notifier struct {
	fd   int
	open bool
}

// dialNotify connects to the socket that $NOTIFY_SOCKET names: a path, or an
// abstract name behind "@".
func dialNotify(name string) (notifier, error) {
	if name == "" {
		return notifier{}, nil
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err == nil {
		if err = unix.Connect(fd, &unix.SockaddrUnix{Name: name}); err == nil {
			return notifier{fd: fd, open: true}, nil
		}
		_ = unix.Close(fd)
	}
	return notifier{}, fmt.Errorf("connect to systemd's notification socket %s: %w", name, err)
}

func (n *notifier) ready() error {
	if !n.open {
		return nil
	}
	defer n.close()
	if _, err := unix.Write(n.fd, []byte("READY=1")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	return nil
}

func (n *notifier) close() {
	if n.open {
		_ = unix.Close(n.fd)
		n.open = false
	}
}
