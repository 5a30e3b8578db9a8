package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"syscall"
	"time"
)

// The bounds on a line, without its newline. The agent's reply grows with the
// number of VMs; a responder's has one VM and comes from a process that faces a
// guest.
const (
	MaxRequest        = 64 << 10
	MaxReply          = 64 << 20
	MaxResponderReply = 1 << 20
)

// The bounds on time where the caller's context sets none.
const (
	callTimeout = 30 * time.Second
	pokeTimeout = 50 * time.Millisecond
)

// errTooLong is a line beyond its bound.
var errTooLong = errors.New("line too long")

// Call sends one request to the agent's socket and returns its reply. A reply
// that carries an Error is not an error of Call. When no agent listens there
// the error wraps fs.ErrNotExist. Without a deadline in ctx it gives up after
// 30 s.
func Call(ctx context.Context, socket string, req Request) (Reply, error) {
	var reply Reply
	line, err := json.Marshal(req)
	if err != nil {
		return reply, fmt.Errorf("encode the request: %w", err)
	}
	answer, err := exchange(ctx, socket, line, MaxReply)
	if err != nil {
		return reply, fmt.Errorf("ask the agent: %w", err)
	}
	if err := json.Unmarshal(answer, &reply); err != nil {
		return Reply{}, fmt.Errorf("read the agent's reply: %w", err)
	}
	return reply, nil
}

// Poke tells the agent to look at a VM again ("" for all) and takes at most
// 50 ms. It does not wait for the reply: nil means that an agent has the
// request in its queue.
func Poke(socket, vm string) error {
	line, err := json.Marshal(Request{Op: "poke", VM: vm})
	if err != nil {
		return fmt.Errorf("encode the request: %w", err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), pokeTimeout)
	defer cancel()
	c, err := dial(ctx, socket)
	if err != nil {
		return fmt.Errorf("poke the agent: %w", err)
	}
	defer func() { _ = c.Close() }() // the request is in the socket's queue
	if _, err := c.Write(append(line, '\n')); err != nil {
		return fmt.Errorf("poke the agent: %w", err)
	}
	return nil
}

// QueryResponder asks a responder for its state. When none listens the error
// wraps fs.ErrNotExist.
func QueryResponder(ctx context.Context, socket string) (Responder, error) {
	return askResponder(ctx, socket, "status")
}

// ReloadResponder makes a responder read its binding again and returns its
// state afterwards. The error carries the responder's own words when it refuses
// the binding; it then keeps the old one.
func ReloadResponder(ctx context.Context, socket string) (Responder, error) {
	return askResponder(ctx, socket, "reload")
}

func askResponder(ctx context.Context, socket, word string) (Responder, error) {
	answer, err := exchange(ctx, socket, []byte(word), MaxResponderReply)
	if err != nil {
		return Responder{}, fmt.Errorf("ask the responder for %s: %w", word, err)
	}
	var reply struct {
		Error string `json:"error"`
		Responder
	}
	if err := json.Unmarshal(answer, &reply); err != nil {
		return Responder{}, fmt.Errorf("read the responder's answer to %s: %w", word, err)
	}
	if reply.Error != "" {
		return Responder{}, fmt.Errorf("the responder refused %s: %s", word, reply.Error)
	}
	reply.Up = true
	return reply.Responder, nil
}

// exchange sends one line and returns the line that comes back.
func exchange(ctx context.Context, socket string, line []byte, limit int) ([]byte, error) {
	if _, ok := ctx.Deadline(); !ok {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(ctx, callTimeout)
		defer cancel()
	}
	c, err := dial(ctx, socket)
	if err != nil {
		return nil, err
	}
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) })()
	if _, err := c.Write(append(line, '\n')); err != nil {
		return nil, because(ctx, fmt.Errorf("send the request: %w", err))
	}
	answer, err := readLine(bufio.NewReader(c), limit)
	switch {
	case errors.Is(err, io.EOF):
		return nil, fmt.Errorf("%s closed the connection without an answer: %w", socket, io.ErrUnexpectedEOF)
	case err != nil:
		return nil, because(ctx, fmt.Errorf("read the answer: %w", err))
	}
	return answer, nil
}

// because prefers the context's reason over the socket's deadline, which may
// come a moment before it.
func because(ctx context.Context, err error) error {
	switch {
	case ctx.Err() != nil:
		return fmt.Errorf("no answer in time: %w", ctx.Err())
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("no answer in time: %w", context.DeadlineExceeded)
	}
	return err
}

func dial(ctx context.Context, socket string) (net.Conn, error) {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", socket)
	switch {
	case err == nil:
	case errors.Is(err, syscall.ECONNREFUSED):
		// The file outlived the process that listened there.
		return nil, fmt.Errorf("nothing listens on %s: %w (%w)", socket, fs.ErrNotExist, syscall.ECONNREFUSED)
	case errors.Is(err, fs.ErrNotExist):
		return nil, fmt.Errorf("nothing listens on %s: %w", socket, fs.ErrNotExist)
	default:
		return nil, fmt.Errorf("connect: %w", err)
	}
	if deadline, ok := ctx.Deadline(); ok {
		if err := c.SetDeadline(deadline); err != nil {
			return nil, errors.Join(fmt.Errorf("set the deadline on %s: %w", socket, err), c.Close())
		}
	}
	return c, nil
}

// readLine returns one line without its newline, or what stands before the end
// of the stream. It keeps at most limit bytes and a buffer.
func readLine(r *bufio.Reader, limit int) ([]byte, error) {
	var line []byte
	for {
		part, err := r.ReadSlice('\n')
		line = append(line, part...)
		ended := err == nil
		if ended {
			line = line[:len(line)-1]
		}
		switch {
		case len(line) > limit:
			return nil, errTooLong
		case ended, errors.Is(err, io.EOF) && len(line) > 0:
			return line, nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}
