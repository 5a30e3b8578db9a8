// Package rawsock opens the packet socket on a guest's bridge, behind a BPF
// filter that lets only requests of that guest through and is locked.
package rawsock

import (
	"errors"
	"fmt"
	"net"
	"sync"
	"syscall"
	"time"

	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
)

// ErrGone says that the interface was removed. A new one with the same name is
// another interface.
var ErrGone = errors.New("the interface is gone")

// downPoll is how often an interface that is down is looked at.
const downPoll = 100 * time.Millisecond

// Conn is a packet socket on one bridge. One goroutine may read while others
// write; it allocates nothing per frame.
type Conn struct {
	name string
	sock *packet.Conn
	raw  syscall.RawConn
	done chan struct{}
	once sync.Once

	// The calls that the poller makes for ReadFrame and WriteFrame are bound
	// once and take their arguments from here: a closure per frame would be an
	// allocation per frame.
	recv   func(fd uintptr) bool
	in     []byte
	n      int
	inErr  error
	send   func(fd uintptr) bool
	write  sync.Mutex // guards out and outErr
	out    []byte
	outErr error
}

// Open listens on the interface for the requests of the guest with that MAC
// address. It takes CAP_NET_RAW. It neither lists interfaces nor waits for the
// kernel's RTNL lock, which others may hold for seconds.
func Open(name string, guest mac.Addr) (*Conn, error) {
	c, err := open(name, guest)
	if err != nil {
		return nil, fmt.Errorf("open a packet socket on %s: %w", name, err)
	}
	return c, nil
}

func open(name string, guest mac.Addr) (*Conn, error) {
	index, err := ifindex(name)
	if err != nil {
		return nil, err
	}
	filter, err := bpf.Assemble(program(guest))
	if err != nil {
		return nil, fmt.Errorf("assemble the filter: %w", err)
	}
	// net.InterfaceByName would dump every link of the host.
	sock, err := packet.Listen(&net.Interface{Index: index, Name: name}, packet.Raw, unix.ETH_P_ALL, &packet.Config{Filter: filter})
	if err != nil {
		return nil, err
	}
	c := &Conn{name: name, sock: sock, done: make(chan struct{})}
	if c.raw, err = sock.SyscallConn(); err == nil {
		err = c.control(func(fd int) error {
			if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
				return fmt.Errorf("ignore outgoing frames: %w", err)
			}
			if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
				return fmt.Errorf("lock the filter: %w", err)
			}
			return nil
		})
	}
	if err != nil {
		_ = sock.Close()
		return nil, err
	}
	c.recv = func(fd uintptr) bool {
		for {
			c.n, c.inErr = unix.Read(int(fd), c.in)
			if c.inErr != unix.EINTR {
				return c.inErr != unix.EAGAIN
			}
		}
	}
	c.send = func(fd uintptr) bool {
		for {
			_, c.outErr = unix.Write(int(fd), c.out)
			if c.outErr != unix.EINTR {
				return true // EAGAIN too: a guest that does not read must not stop the pump
			}
		}
	}
	return c, nil
}

func ifindex(name string) (int, error) {
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return 0, fmt.Errorf("interface name %q: %w", name, err)
	}
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open a socket to look the interface up: %w", err)
	}
	defer unix.Close(fd)
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return 0, fmt.Errorf("look the interface up: %w", err)
	}
	return int(ifr.Uint32()), nil
}

func (c *Conn) control(f func(fd int) error) error {
	var err error
	if cerr := c.raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}

// ReadFrame waits for a frame and copies it into buf; what does not fit is cut
// off. It sits out the interface being down. The error is ErrGone when the
// interface was removed and wraps net.ErrClosed after Close.
func (c *Conn) ReadFrame(buf []byte) (int, error) {
	for {
		c.in = buf
		err := c.raw.Read(c.recv)
		if err == nil {
			err = c.inErr
		}
		if err == nil {
			return c.n, nil
		}
		if err := c.settle(err); err != nil {
			return 0, fmt.Errorf("read from %s: %w", c.name, err)
		}
	}
}

// settle waits after a failed read until the interface is up. The kernel says
// ENETDOWN once when an interface goes down, and nothing more when it is removed
// after that, so it has to be asked.
func (c *Conn) settle(cause error) error {
	for {
		select {
		case <-c.done:
			return net.ErrClosed
		default:
		}
		up, err := c.up()
		if err != nil {
			return fmt.Errorf("%w (after: %w)", err, cause)
		}
		// One round even if it is up: whatever the error was, it must not
		// become a busy loop.
		wait := time.NewTimer(downPoll)
		select {
		case <-c.done:
			wait.Stop()
			return net.ErrClosed
		case <-wait.C:
		}
		if up {
			return nil
		}
	}
}

// up tells whether the interface that the socket is bound to is up; the error
// is ErrGone when there is none any more.
func (c *Conn) up() (up bool, err error) {
	err = c.control(func(fd int) error {
		sa, err := unix.Getsockname(fd)
		if err != nil {
			return fmt.Errorf("ask for the socket's interface: %w", err)
		}
		if ll, ok := sa.(*unix.SockaddrLinklayer); !ok || ll.Ifindex <= 0 {
			return ErrGone
		}
		ifr, err := unix.NewIfreq(c.name)
		if err != nil {
			return fmt.Errorf("interface name %q: %w", c.name, err)
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
			return fmt.Errorf("%w: %w", ErrGone, err)
		}
		up = ifr.Uint16()&unix.IFF_UP != 0
		return nil
	})
	return up, err
}

// WriteFrame sends a frame as it is. It fails at once when the kernel has no
// room for it or the interface is down.
func (c *Conn) WriteFrame(frame []byte) error {
	c.write.Lock()
	defer c.write.Unlock()
	c.out = frame
	err := c.raw.Write(c.send)
	c.out = nil
	if err == nil {
		err = c.outErr
	}
	if err != nil {
		return fmt.Errorf("send on %s: %w", c.name, err)
	}
	return nil
}

// Close ends a ReadFrame that waits. It may be called more than once.
func (c *Conn) Close() error {
	var err error
	c.once.Do(func() {
		close(c.done)
		err = c.sock.Close()
	})
	return err
}
