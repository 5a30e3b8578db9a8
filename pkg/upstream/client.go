// Package upstream asks a provider's router, or the next level up, for IPv6
// prefixes: a requesting router (DHCPv6 with IA_PD, RFC 8415; RFC 9096) on one
// interface. It owns a UDP socket at port 546 of that interface and one file; it
// sets no address and no route. What servers say is input from whoever is on that
// network.
package upstream

import (
	"context"
	crand "crypto/rand"
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
)

// Client keeps the prefixes of one interface. Fill in the exported fields, then Run
// it, or Release what it had.
type Client struct {
	Interface string
	Hint      uint8  // the length that it asks for; 0: any
	State     string // the file in which it keeps what it has
	// Changed is called by Run when leases come, are renewed or go: with all of
	// them, the one to number from first. At the start it is called with what is
	// known from the file, unless that is nothing.
	Changed func([]Lease)
	Log     logrus.FieldLogger
	Now     func() time.Time // nil: time.Now

	once sync.Once
	poke chan struct{}

	mu     sync.Mutex
	status Status
}

// Status is how a client stands.
type Status struct {
	Phase  string // soliciting, requesting, bound, renewing, rebinding, verifying; "" before Run
	Server string // DUID, in hex
	Leases []Lease
	Renew  time.Time // T1; zero: never
	Fault  string    // why nothing can be sent at the moment, "" when it can
	Counts Counts
}

// Counts are messages, but for Refused.
type Counts struct {
	Sent, Received uint64
	Malformed      uint64 // could not be read
	Stray          uint64 // answered nothing that was asked
	Refused        uint64 // prefixes that cannot be used
}

// How long it waits until it tries again what failed.
const (
	firstRetry = 250 * time.Millisecond
	lastRetry  = 15 * time.Second
)

func (c *Client) init() { c.once.Do(func() { c.poke = make(chan struct{}, 1) }) }

// Poke says that the interface was down and is up again, or has other addresses: what it
// has is verified (RFC 8415 §18.2.12). It does not block.
func (c *Client) Poke() {
	c.init()
	select {
	case c.poke <- struct{}{}:
	default:
	}
}

// Status tells how it stands.
func (c *Client) Status() Status {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := c.status
	s.Leases = slices.Clone(s.Leases)
	return s
}

// Run keeps the leases until ctx ends. It does not give them back then: a restart
// is none of the server's business (RFC 9096 §3.1). What fails is said once and tried
// again. It is one thread's network namespace that it is in: the caller's.
func (c *Client) Run(ctx context.Context) error {
	r, err := c.runner()
	if err != nil {
		return err
	}
	r.start = r.machine.begin
	if now := r.now(); len(r.machine.leases) > 0 {
		r.machine.expire(now)
		r.machine.changed = len(r.machine.leases) > 0
		r.publish()
	}
	r.run(ctx)
	return nil
}

// Release gives back what the state file has, and forgets it; the file keeps who
// we are. Nothing may use the prefixes any more, and Run has to have ended. An error
// says that ctx ended before; a server that does not answer is none.
func (c *Client) Release(ctx context.Context) error {
	r, err := c.runner()
	if err != nil {
		return err
	}
	r.quiet = true
	r.machine.expire(r.now())
	r.publish()
	if len(r.machine.leases) == 0 {
		return nil
	}
	r.start = r.machine.release
	r.run(ctx)
	if r.machine.phase != released {
		return fmt.Errorf("release the prefixes of %s: %w: %s", c.Interface, ctx.Err(), c.Status().Fault)
	}
	return nil
}

// runner is one Run or Release.
type runner struct {
	*Client
	machine *machine
	now     func() time.Time
	start   func(now time.Time) // when there is a socket (again)
	quiet   bool                // Changed is not called
	said    map[string]bool     // faults, until it works again
	saved   bool                // the last save succeeded
}

func (c *Client) runner() (*runner, error) {
	c.init()
	r := &runner{Client: c, now: c.Now, said: map[string]bool{}, saved: true}
	if r.now == nil {
		r.now = time.Now
	}
	have, err := load(c.State)
	if err != nil {
		c.Log.Warnf("upstream %s: %v; what is delegated is asked for anew", c.Interface, err)
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("ask for prefixes on %s: %w", c.Interface, err)
	}
	r.machine = &machine{kept: have, hint: c.Hint, random: rand.New(rand.NewChaCha8(seed))}
	return r, nil
}

// run serves until ctx ends or all is released.
func (r *runner) run(ctx context.Context) {
	var (
		s       *socket
		stop    context.CancelFunc // of reading
		failed  chan error
		reading sync.WaitGroup
		retry   = firstRetry
		openAt  = r.now()
	)
	got := make(chan []byte, 16)
	shut := func() {
		if s != nil {
			stop()
			_ = s.Close()
			reading.Wait()
			s, failed = nil, nil
		}
	}
	again := func(err error) {
		shut()
		r.fault(err)
		openAt = r.now().Add(retry)
		retry = min(2*retry, lastRetry)
	}
	defer shut()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		if now := r.now(); s == nil && !now.Before(openAt) {
			opened, err := open(r.Interface)
			if err == nil {
				err = r.identify(opened.hw)
			}
			if err != nil {
				again(err)
			} else {
				s, failed = opened, make(chan error, 1)
				reader, cancel := context.WithCancel(ctx)
				stop = cancel
				reading.Go(func() { failed <- opened.receive(reader, got) })
				r.start(now)
			}
		}
		if message := r.machine.wake(r.now()); message != nil && s != nil {
			if err := s.send(message); err != nil {
				again(fmt.Errorf("send to the DHCPv6 servers: %w", err))
			} else {
				retry = firstRetry
				r.works()
			}
		}
		r.publish()
		if r.machine.phase == released {
			return
		}
		next := r.machine.next()
		if s == nil && (next.IsZero() || openAt.Before(next)) {
			next = openAt
		}
		if next.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(next.Sub(r.now()))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case b := <-got:
			r.machine.receive(b, r.now())
		case err := <-failed:
			again(fmt.Errorf("read from the DHCPv6 servers: %w", err))
		case <-r.poke:
			shut()
			openAt = r.now()
		}
	}
}

// identify makes sure that there are a DUID and an IAID, for the life of the file.
func (r *runner) identify(hw net.HardwareAddr) (err error) {
	m := r.machine
	if len(m.duid) > 0 {
		return nil
	}
	m.duid, m.iaid, err = identity(r.Interface, hw)
	m.dirty = true
	return err
}

// publish keeps and tells what has changed.
func (r *runner) publish() {
	m := r.machine
	for _, n := range m.notes {
		r.Log.Infof("upstream %s: %s", r.Interface, n)
	}
	m.notes = nil
	if m.dirty && len(m.duid) > 0 {
		m.dirty = false
		err := save(r.State, m.kept)
		if err != nil && r.saved {
			r.Log.Warnf("upstream %s: keep what is delegated: %v; it is asked for anew after a restart", r.Interface, err)
		}
		r.saved = err == nil
	}
	r.mu.Lock()
	r.status.Phase, r.status.Server, r.status.Leases = string(m.phase), hex.EncodeToString(m.server), slices.Clone(m.leases)
	r.status.Renew, r.status.Counts = m.t1, m.counts
	r.mu.Unlock()
	if m.changed {
		m.changed = false
		if r.Changed != nil && !r.quiet {
			r.Changed(slices.Clone(m.leases))
		}
	}
}

// fault says what does not work, once.
func (r *runner) fault(err error) {
	text := err.Error()
	if !r.said[text] && len(r.said) < 16 {
		r.said[text] = true
		r.Log.Warnf("upstream %s: %s", r.Interface, text)
	}
	r.mu.Lock()
	r.status.Fault = text
	r.mu.Unlock()
}

// works says that it does again.
func (r *runner) works() {
	if len(r.said) == 0 {
		return
	}
	clear(r.said)
	r.Log.Infof("upstream %s: DHCPv6 servers are asked again", r.Interface)
	r.mu.Lock()
	r.status.Fault = ""
	r.mu.Unlock()
}
