package control

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"
)

// The bounds on what clients can take of the agent.
const (
	maxConns     = 32
	readTimeout  = 10 * time.Second // for the next request to arrive
	writeTimeout = 10 * time.Second // for a reply to be taken
	acceptPause  = 50 * time.Millisecond
)

// Serve answers requests until ctx ends, then closes the listener, waits for
// the handlers (whose context has ended) and returns nil. A connection may
// carry several requests, one after the other; what is beyond 32 connections
// waits to be accepted. handle is called from several goroutines.
func Serve(ctx context.Context, l net.Listener, handle func(context.Context, Request) Reply) error {
	ctx, cancel := context.WithCancel(ctx)
	var conns sync.WaitGroup
	defer conns.Wait()
	defer cancel()
	defer context.AfterFunc(ctx, func() { _ = l.Close() })()
	places := make(chan struct{}, maxConns)
	for {
		select {
		case places <- struct{}{}:
		case <-ctx.Done():
			return nil
		}
		c, err := l.Accept()
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", l.Addr(), err)
		default: // out of file descriptors, or the client has gone
			<-places
			if !pause(ctx, acceptPause) {
				return nil
			}
			continue
		}
		conns.Go(func() {
			defer func() { <-places }()
			serveConn(ctx, c, handle)
		})
	}
}

// pause waits and reports whether ctx goes on.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}

// serveConn ends at the first fault: the client sees the connection closed.
func serveConn(ctx context.Context, c net.Conn, handle func(context.Context, Request) Reply) {
	defer func() { _ = c.Close() }()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	r := bufio.NewReader(c)
	for ctx.Err() == nil {
		if err := c.SetReadDeadline(time.Now().Add(readTimeout)); err != nil {
			return
		}
		req, err := readRequest(r)
		var bad badRequest
		if err != nil && !errors.As(err, &bad) {
			return
		}
		reply := Reply{Error: string(bad), Code: 2}
		if err == nil {
			reply = handle(ctx, req)
		}
		b, encodeErr := json.Marshal(reply)
		if encodeErr != nil {
			return
		}
		if err := c.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
			return
		}
		if _, writeErr := c.Write(append(b, '\n')); writeErr != nil || err != nil {
			return
		}
	}
}

// badRequest is a line that is not a request, in words for the client.
type badRequest string

func (b badRequest) Error() string { return string(b) }

// readRequest reads one line. A line that is not a request gives a badRequest.
func readRequest(r *bufio.Reader) (Request, error) {
	line, err := readLine(r, MaxRequest)
	switch {
	case errors.Is(err, errTooLong):
		return Request{}, badRequest(fmt.Sprintf("the request is longer than %d bytes", MaxRequest))
	case errors.Is(err, io.EOF):
		return Request{}, io.EOF
	case err != nil:
		return Request{}, fmt.Errorf("read a request: %w", err)
	}
	var req Request
	if err := json.Unmarshal(line, &req); err != nil {
		return Request{}, badRequest(`the request is not one line of JSON such as {"op":"status"}: ` + err.Error())
	}
	if req.Op == "" {
		return Request{}, badRequest(`the request has no "op"`)
	}
	return req, nil
}
