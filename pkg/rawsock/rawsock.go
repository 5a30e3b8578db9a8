// Package rawsock opens the packet socket on a guest's bridge, behind a BPF
// filter that lets only requests of that guest through and is locked.
package rawsock

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/mac"
)

// ErrGone says that the interface was removed. A new one with the same name is
// another interface.
var ErrGone = errors.New("the interface is gone")

// downPoll is how often an interface that is down is looked at.
const downPoll = 100 * time.Millisecond

// tellAfter is how many frames may come without a pause before the scheduler is
// told. Its monitor thread, which may sleep, then sees to it that the other
// goroutines run, however long the guest keeps the reader busy.
const tellAfter = 64

// Conn is a packet socket on one bridge. One goroutine may read while others
// write; it allocates nothing per frame.
type Conn struct {
	name string
	file *os.File
	raw  syscall.RawConn
	done chan struct{}
	once sync.Once

	// The calls that the poller makes for ReadFrame and WriteFrame are bound
	// once and take their arguments from here: a closure per frame would be an
	// allocation per frame.
	recv   func(fd uintptr) bool
	in     []byte
	row    int // frames without a pause since the scheduler was told
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
	// Of no protocol: it hears nothing until it is bound.
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("make the socket: %w", err)
	}
	file := os.NewFile(uintptr(fd), name)
	if err := listen(fd, name, guest); err != nil {
		_ = file.Close()
		return nil, err
	}
	return newConn(name, file)
}

// newConn takes over a file that does not block.
func newConn(name string, file *os.File) (*Conn, error) {
	raw, err := file.SyscallConn()
	if err != nil {
		_ = file.Close()
		return nil, err
	}
	c := &Conn{name: name, file: file, raw: raw, done: make(chan struct{})}
	c.recv, c.send = c.receive, c.transmit
	return c, nil
}

// listen makes the socket hear the guest's requests. Nothing else reaches it at
// any time: the filter is there first.
func listen(fd int, name string, guest mac.Addr) error {
	filter, err := bpf.Assemble(program(guest))
	if err != nil {
		return fmt.Errorf("assemble the filter: %w", err)
	}
	sock := make([]unix.SockFilter, len(filter))
	for i, r := range filter {
		sock[i] = unix.SockFilter{Code: r.Op, Jt: r.Jt, Jf: r.Jf, K: r.K}
	}
	if err := unix.SetsockoptSockFprog(fd, unix.SOL_SOCKET, unix.SO_ATTACH_FILTER, &unix.SockFprog{Len: uint16(len(sock)), Filter: &sock[0]}); err != nil {
		return fmt.Errorf("attach the filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_LOCK_FILTER, 1); err != nil {
		return fmt.Errorf("lock the filter: %w", err)
	}
	if err := unix.SetsockoptInt(fd, unix.SOL_PACKET, unix.PACKET_IGNORE_OUTGOING, 1); err != nil {
		return fmt.Errorf("ignore outgoing frames: %w", err)
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return fmt.Errorf("interface name %q: %w", name, err)
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFINDEX, ifr); err != nil {
		return fmt.Errorf("look the interface up: %w", err)
	}
	// In network byte order, as packet(7) has it.
	all := binary.NativeEndian.Uint16(binary.BigEndian.AppendUint16(nil, unix.ETH_P_ALL))
	if err := unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all, Ifindex: int(ifr.Uint32())}); err != nil {
		return fmt.Errorf("bind the socket: %w", err)
	}
	return nil
}

// receive reads one frame. It is false when there is none.
func (c *Conn) receive(fd uintptr) bool {
	for {
		if c.row++; c.row < tellAfter {
			c.n, c.inErr = transfer(unix.SYS_READ, fd, c.in)
		} else {
			c.row = 0
			c.n, c.inErr = unix.Read(int(fd), c.in)
		}
		switch c.inErr {
		case unix.EINTR:
		case unix.EAGAIN:
			c.row = 0
			return false
		default:
			return true
		}
	}
}

// transmit sends one frame or, if there is no room, drops it: a guest that does not
// read must not stop the pump.
func (c *Conn) transmit(fd uintptr) bool {
	for {
		if _, c.outErr = transfer(unix.SYS_WRITE, fd, c.out); c.outErr != unix.EINTR {
			return true
		}
	}
}

// transfer is read(2) or write(2) on a socket that does not block. It does not
// tell the scheduler, which would take the call for one that may block and wake its
// monitor thread: two more system calls and a change of thread for every frame.
func transfer(call, fd uintptr, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(call, fd, uintptr(unsafe.Pointer(unsafe.SliceData(b))), uintptr(len(b)))
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
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
// interface was removed and wraps os.ErrClosed after Close.
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
			return os.ErrClosed
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
			return os.ErrClosed
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
		err = c.file.Close()
	})
	return err
}
