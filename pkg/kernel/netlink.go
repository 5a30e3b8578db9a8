package kernel

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"

	"golang.org/x/sys/unix"
)

// errInterrupted is a dump that the kernel marked as inconsistent because the
// objects changed under it.
var errInterrupted = errors.New("dump interrupted by a change")

// dumpTries bounds how often an interrupted dump is asked for again.
const dumpTries = 20

const (
	nlHeader = unix.NLMSG_HDRLEN
	attrType = 0x3fff // NLA_TYPE_MASK
	// batchBytes bounds one send of many requests. The kernel works through it
	// before send returns, and takes RTNL anew for each request in it.
	batchBytes = 32 << 10
	// bufferBytes is for the socket's buffers: a whole nftables transaction must
	// fit into one datagram, its answers into the queue.
	bufferBytes = 16 << 20
	// receiveTimeout is how long an answer may take, in seconds. RTNL can be
	// held that long by the removal of a large namespace.
	receiveTimeout = 120
)

// message is one netlink request under construction: header, fixed part,
// attributes.
type message []byte

// newMessage starts a request with the fixed part of its family.
func newMessage(typ uint16, flags uint16, fixed []byte) message {
	m := make(message, nlHeader, 192)
	binary.NativeEndian.PutUint16(m[4:], typ)
	binary.NativeEndian.PutUint16(m[6:], unix.NLM_F_REQUEST|flags)
	return m.raw(fixed)
}

// raw appends bytes and pads to four.
func (m message) raw(b []byte) message {
	m = append(m, b...)
	for len(m)%4 != 0 {
		m = append(m, 0)
	}
	return m
}

// attr appends one attribute.
func (m message) attr(typ uint16, data []byte) message {
	m = binary.NativeEndian.AppendUint16(m, uint16(4+len(data)))
	m = binary.NativeEndian.AppendUint16(m, typ)
	return m.raw(data)
}

func (m message) str(typ uint16, s string) message { return m.attr(typ, append([]byte(s), 0)) }

func (m message) u8(typ uint16, v uint8) message { return m.attr(typ, []byte{v}) }

func (m message) u32(typ uint16, v uint32) message {
	return m.attr(typ, binary.NativeEndian.AppendUint32(nil, v))
}

func (m message) be32(typ uint16, v uint32) message {
	return m.attr(typ, binary.BigEndian.AppendUint32(nil, v))
}

// nest appends an attribute that holds what fill appends.
func (m message) nest(typ uint16, fill func(message) message) message {
	at := len(m)
	m = append(m, 0, 0, 0, 0)
	m = fill(m)
	binary.NativeEndian.PutUint16(m[at:], uint16(len(m)-at))
	binary.NativeEndian.PutUint16(m[at+2:], typ|unix.NLA_F_NESTED)
	return m
}

// seal fills in length and sequence number.
func (m message) seal(seq uint32) {
	binary.NativeEndian.PutUint32(m[0:], uint32(len(m)))
	binary.NativeEndian.PutUint32(m[8:], seq)
}

func (m message) setFlags(flags uint16) {
	binary.NativeEndian.PutUint16(m[6:], binary.NativeEndian.Uint16(m[6:])|flags)
}

// attrs calls f for each attribute in b. It stops at what is malformed: b is
// the kernel's.
func attrs(b []byte, f func(typ uint16, data []byte)) {
	for len(b) >= 4 {
		n := int(binary.NativeEndian.Uint16(b))
		if n < 4 || n > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[2:])&attrType, b[4:n])
		b = b[min((n+3)&^3, len(b)):]
	}
}

func cString(b []byte) string {
	for i, c := range b {
		if c == 0 {
			return string(b[:i])
		}
	}
	return string(b)
}

func hostU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.NativeEndian.Uint32(b)
}

func netU32(b []byte) uint32 {
	if len(b) < 4 {
		return 0
	}
	return binary.BigEndian.Uint32(b)
}

// conn is one netlink socket. It stays in the network namespace in which it
// was opened.
type conn struct {
	mu  sync.Mutex
	fd  int
	seq uint32
	buf []byte
}

func dial(proto int) (*conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, proto)
	if err != nil {
		return nil, fmt.Errorf("open netlink socket: %w", err)
	}
	c := &conn{fd: fd, buf: make([]byte, 64<<10)}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("bind netlink socket: %w", err)
	}
	for _, opt := range []struct{ level, name, value int }{
		{unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, bufferBytes},
		{unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, bufferBytes},
		{unix.SOL_NETLINK, unix.NETLINK_EXT_ACK, 1},
		{unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1},
		{unix.SOL_NETLINK, unix.NETLINK_GET_STRICT_CHK, 1},
	} {
		// Each makes it faster or its errors clearer; none is a must: without
		// CAP_NET_ADMIN one can still read.
		_ = unix.SetsockoptInt(fd, opt.level, opt.name, opt.value)
	}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: receiveTimeout}); err != nil {
		unix.Close(fd)
		return nil, fmt.Errorf("set netlink timeout: %w", err)
	}
	return c, nil
}

func (c *conn) close() error { return unix.Close(c.fd) }

func (c *conn) send(b []byte) error {
	for {
		err := unix.Sendto(c.fd, b, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		if err != unix.EINTR {
			return err
		}
	}
}

// receive reads one datagram and calls f for each message in it.
func (c *conn) receive(f func(typ, flags uint16, seq uint32, data []byte)) error {
	for {
		n, _, flags, from, err := unix.Recvmsg(c.fd, c.buf, nil, 0)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return err
		}
		if flags&unix.MSG_TRUNC != 0 {
			return unix.EMSGSIZE
		}
		if sa, ok := from.(*unix.SockaddrNetlink); !ok || sa.Pid != 0 {
			continue // not from the kernel
		}
		messages(c.buf[:n], f)
		return nil
	}
}

// messages calls f for each netlink message in a datagram.
func messages(b []byte, f func(typ, flags uint16, seq uint32, data []byte)) {
	for len(b) >= nlHeader {
		l := int(binary.NativeEndian.Uint32(b))
		if l < nlHeader || l > len(b) {
			return
		}
		f(binary.NativeEndian.Uint16(b[4:]), binary.NativeEndian.Uint16(b[6:]), binary.NativeEndian.Uint32(b[8:]), b[nlHeader:l])
		b = b[min((l+3)&^3, len(b)):]
	}
}

// answerError reads an NLMSG_ERROR or NLMSG_DONE; nil is an acknowledgement.
func answerError(typ, flags uint16, data []byte) error {
	if len(data) < 4 {
		return nil
	}
	errno := int32(binary.NativeEndian.Uint32(data))
	if errno == 0 {
		return nil
	}
	var err error = unix.Errno(-errno)
	at := 4
	if typ == unix.NLMSG_ERROR {
		at += nlHeader // the request's header; NETLINK_CAP_ACK leaves out the rest
	}
	if flags&unix.NLM_F_ACK_TLVS != 0 && len(data) > at {
		attrs(data[at:], func(typ uint16, d []byte) {
			if typ == unix.NLMSGERR_ATTR_MSG {
				err = fmt.Errorf("%w (%s)", err, cString(d))
			}
		})
	}
	return err
}

// dump asks for a list and calls f with each message's type and body. When the
// kernel says that the list changed meanwhile, it is asked for again: start is
// called before each try, to forget what was collected. So f never leaves a
// partial list behind without an error.
func (c *conn) dump(ctx context.Context, m message, start func(), f func(typ uint16, data []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.setFlags(unix.NLM_F_DUMP)
	var err error
	for range dumpTries {
		if err := ctx.Err(); err != nil {
			return err
		}
		start()
		err = c.exchange(m, f)
		if !errors.Is(err, errInterrupted) && !errors.Is(err, unix.EINTR) && !errors.Is(err, unix.EBUSY) && !errors.Is(err, unix.EAGAIN) {
			return err
		}
	}
	return err
}

// get asks for one object. unix.ENODEV, ENOENT or whatever the kernel says
// comes back as the error.
func (c *conn) get(m message, f func(typ uint16, data []byte)) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	m.setFlags(unix.NLM_F_ACK)
	return c.exchange(m, f)
}

func (c *conn) exchange(m message, f func(typ uint16, data []byte)) error {
	c.seq++
	want := c.seq
	m.seal(want)
	if err := c.send(m); err != nil {
		return err
	}
	interrupted, done := false, false
	var failed error
	for !done {
		err := c.receive(func(typ, flags uint16, seq uint32, data []byte) {
			if seq != want || done {
				return
			}
			if flags&unix.NLM_F_DUMP_INTR != 0 {
				interrupted = true
			}
			switch typ {
			case unix.NLMSG_DONE, unix.NLMSG_ERROR:
				failed, done = answerError(typ, flags, data), true
			default:
				f(typ, data)
			}
		})
		if err != nil {
			return err
		}
	}
	if failed == nil && interrupted {
		return errInterrupted
	}
	return failed
}

// batch sends requests, many at a time, and returns each one's error, nil for
// those that succeeded. A request that fails does not stop those after it.
func (c *conn) batch(ctx context.Context, msgs []message) []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	errs := make([]error, len(msgs))
	for from := 0; from < len(msgs); {
		to, size := from, 0
		for to < len(msgs) && (to == from || size+len(msgs[to]) <= batchBytes) {
			size += len(msgs[to])
			to++
		}
		err := ctx.Err()
		if err == nil {
			err = c.sendBatch(msgs[from:to], errs[from:to], size)
		}
		if err != nil {
			for i := from; i < to; i++ {
				errs[i] = err
			}
		}
		from = to
	}
	return errs
}

func (c *conn) sendBatch(msgs []message, errs []error, size int) error {
	first := c.seq + 1
	b := make([]byte, 0, size)
	// Only the last asks for an answer; those that fail answer unasked, and before it.
	msgs[len(msgs)-1].setFlags(unix.NLM_F_ACK)
	for _, m := range msgs {
		c.seq++
		m.seal(c.seq)
		b = append(b, m...)
	}
	if err := c.send(b); err != nil {
		return err
	}
	for done := false; !done; {
		err := c.receive(func(typ, flags uint16, seq uint32, data []byte) {
			if i := int(seq - first); typ == unix.NLMSG_ERROR && i >= 0 && i < len(msgs) {
				errs[i] = answerError(typ, flags, data)
				done = done || i == len(msgs)-1
			}
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// transaction sends an nftables batch: all of it happens or nothing. The error
// is that of the first message that failed.
func (c *conn) transaction(ctx context.Context, msgs []message) error {
	if len(msgs) == 0 {
		return nil
	}
	if err := ctx.Err(); err != nil {
		return err
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	edge := []byte{unix.AF_UNSPEC, unix.NFNETLINK_V0, 0, unix.NFNL_SUBSYS_NFTABLES}
	begin := newMessage(unix.NFNL_MSG_BATCH_BEGIN, 0, edge)
	end := newMessage(unix.NFNL_MSG_BATCH_END, 0, edge)
	c.seq++
	first := c.seq
	begin.seal(first)
	size := len(begin) + len(end)
	for _, m := range msgs {
		size += len(m)
	}
	b := append(make([]byte, 0, size), begin...)
	// Only the last message asks for an answer; those that fail answer unasked.
	msgs[len(msgs)-1].setFlags(unix.NLM_F_ACK)
	for _, m := range msgs {
		c.seq++
		m.seal(c.seq)
		b = append(b, m...)
	}
	last := c.seq
	c.seq++
	end.seal(c.seq)
	b = append(b, end...)
	if err := c.send(b); err != nil {
		return err
	}
	var failed error
	for done := false; !done; {
		err := c.receive(func(typ, flags uint16, seq uint32, data []byte) {
			if typ != unix.NLMSG_ERROR || seq-first > last-first+1 {
				return
			}
			if err := answerError(typ, flags, data); err != nil && failed == nil {
				failed = err
			}
			// The first number stands for the whole batch: it was refused.
			done = done || seq == first || seq == last
		})
		if err != nil {
			return err
		}
	}
	return failed
}
