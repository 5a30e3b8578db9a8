package vmlink

import (
	"fmt"
	"net"
)

// notifier tells systemd that the process is ready (sd_notify(3)). Its socket is
// connected while that is still allowed. The zero value tells nobody.
type notifier struct {
	conn *net.UnixConn
}

func dialNotify(path string) (notifier, error) {
	if path == "" {
		return notifier{}, nil
	}
	conn, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return notifier{}, fmt.Errorf("connect to systemd's notification socket: %w", err)
	}
	return notifier{conn}, nil
}

func (n *notifier) ready() error {
	if n.conn == nil {
		return nil
	}
	if _, err := n.conn.Write([]byte("READY=1")); err != nil {
		return fmt.Errorf("notify systemd: %w", err)
	}
	n.close()
	return nil
}

func (n *notifier) close() {
	if n.conn != nil {
		_ = n.conn.Close()
		n.conn = nil
	}
}
