// Package virt is the only one that knows libvirt: it lists the active domains
// and says when to list again. Every call is bounded in time; what comes too
// late is an error, never an empty list.
package virt

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
)

// Times.
const (
	rpcTimeout = 5 * time.Second // for one Snapshot, when the caller sets less time that holds
	maxStrikes = 3               // Snapshots that came too late before the connection is dropped
	pauseMin   = 100 * time.Millisecond
	pauseMax   = 5 * time.Second
	closeTime  = time.Second      // for a connection to close, before it is left to its keepalive
	hungAfter  = 10 * time.Second // a connection attempt that takes longer is worth a line

	// A server that does not answer is given up after keepAlive × (keepCount+1).
	keepAlive = 5 // seconds
	keepCount = 3
)

// Domain is an active domain: it has a QEMU process, running or paused.
type Domain struct {
	UUID  uuid.UUID
	Name  string
	ID    int    // libvirt's number of this run
	XML   string // live; as old as the last event of the domain, at most maxAge
	State string // as virsh domstate --reason says it: running, paused (migrating), ...
}

// Conn is the connection to one libvirt, made again whenever it breaks. It reads
// only: a guest's secrets and its fate are out of its reach.
type Conn struct {
	uri string
	log logrus.FieldLogger

	mu      sync.Mutex
	session *session // nil while not connected
	since   time.Time
	lastErr error // why it is not connected
}

// New makes a Conn. It connects in Run.
func New(uri string, log logrus.FieldLogger) *Conn {
	return &Conn{uri: uri, log: log, since: time.Now(), lastErr: errors.New("no attempt yet")}
}

// State tells whether the connection stands, and since when that is so.
func (c *Conn) State() (connected bool, since time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.session != nil, c.since
}

// Run connects, and connects again after 100 ms to 5 s whenever the connection
// is lost, until ctx ends; then it returns nil. wake is called, from several
// goroutines, when the list may have changed: after each connecting (events are
// registered by then, so nothing falls between), each loss and each event. It
// must not block.
//
// While libvirtd hangs, calls to it hang with it. Run leaves those behind when
// it has to; they end with their connection, 20 s after libvirtd's last answer.
func (c *Conn) Run(ctx context.Context, wake func(reason string)) error {
	pause := pauseMin
	for {
		began := time.Now()
		err := c.once(ctx, wake)
		if ctx.Err() != nil {
			return nil
		}
		c.log.Warnf("libvirt (%s): %v; next try in %v", c.uri, err, pause)
		if time.Since(began) > pauseMax {
			pause = pauseMin
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(pause):
		}
		pause = min(2*pause, pauseMax)
	}
}

// once connects and returns when that failed, the connection was lost or ctx
// has ended.
func (c *Conn) once(ctx context.Context, wake func(string)) error {
	leave, err := events.enter()
	if err != nil {
		c.note(nil, err)
		return err
	}
	defer leave()
	s, err := c.connect(ctx, wake)
	if err != nil {
		c.note(nil, err)
		return err
	}
	c.note(s, nil)
	c.log.Infof("libvirt (%s): connected", c.uri)
	wake("connected")

	select {
	case <-ctx.Done():
		err = ctx.Err()
	case <-s.lost:
		err = s.why
	}
	c.note(nil, err)
	if ctx.Err() == nil {
		wake("connection lost")
	}
	closed := make(chan struct{})
	go func() {
		defer close(closed)
		s.close()
	}()
	select {
	case <-closed:
	case <-time.After(closeTime):
	}
	return err
}

// note keeps what State and Snapshot tell. The time is that of the last change.
func (c *Conn) note(s *session, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if (s != nil) != (c.session != nil) {
		c.since = time.Now()
	}
	c.session, c.lastErr = s, err
}

// connect waits for as long as libvirt takes: a second attempt at a libvirtd
// that hangs would only hang, too.
func (c *Conn) connect(ctx context.Context, wake func(string)) (*session, error) {
	type result struct {
		s   *session
		err error
	}
	results := make(chan result)
	go func() {
		s, err := open(c.uri, wake)
		select {
		case results <- result{s, err}:
		case <-ctx.Done():
			if s != nil {
				s.close()
			}
		}
	}()
	hung := time.NewTimer(hungAfter)
	defer hung.Stop()
	for {
		select {
		case r := <-results:
			return r.s, r.err
		case <-hung.C:
			err := fmt.Errorf("connecting takes longer than %v", hungAfter)
			c.note(nil, err)
			c.log.Warnf("libvirt (%s): %v", c.uri, err)
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// Snapshot lists the active domains. An error means that the list is not known.
// It takes at most 5 s, whatever ctx says.
func (c *Conn) Snapshot(ctx context.Context) ([]Domain, error) {
	return ask(ctx, c, (*session).list)
}

// Defined lists the UUIDs of all domains, active or not. It is bounded as
// Snapshot is.
func (c *Conn) Defined(ctx context.Context) ([]uuid.UUID, error) {
	return ask(ctx, c, (*session).defined)
}

// ask has the session answer a question, or gives up on it.
func ask[T any](ctx context.Context, c *Conn, question func(*session) (T, error)) (none T, err error) {
	ctx, cancel := context.WithTimeout(ctx, rpcTimeout)
	defer cancel()
	s, release, err := c.use()
	if err != nil {
		return none, err
	}
	type result struct {
		answer T
		err    error
	}
	// One list at a time: those behind one that hangs would only hang, too.
	select {
	case s.busy <- struct{}{}:
	case <-ctx.Done():
		release()
		return none, s.late(ctx)
	}
	results := make(chan result, 1)
	go func() {
		defer release()
		defer func() { <-s.busy }()
		answer, err := question(s)
		results <- result{answer, err}
	}()
	select {
	case r := <-results:
		if r.err != nil {
			return none, fmt.Errorf("list libvirt's domains: %w", r.err)
		}
		s.strikes.Store(0)
		return r.answer, nil
	case <-ctx.Done():
		return none, s.late(ctx)
	}
}

// use returns the session with a reference to its connection, which release
// gives back.
func (c *Conn) use() (s *session, release func(), err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.session == nil {
		return nil, nil, fmt.Errorf("list libvirt's domains: no connection to %s since %s: %w",
			c.uri, c.since.Format(time.TimeOnly), c.lastErr)
	}
	if err := c.session.conn.Ref(); err != nil {
		return nil, nil, fmt.Errorf("hold the connection to %s: %w", c.uri, err)
	}
	s = c.session
	return s, s.unref, nil
}
