package responder

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sirupsen/logrus"
)

// FrameConn carries the frames of one link, each with its Ethernet header.
// WriteFrame and Close may be called while another goroutine reads.
type FrameConn interface {
	// ReadFrame waits for a frame and copies it into buf; what does not fit is
	// cut off. Its error is final: the link is gone, or Close was called.
	ReadFrame(buf []byte) (int, error)
	// WriteFrame sends a frame or fails at once; it never waits for the guest.
	WriteFrame(frame []byte) error
	Close() error
}

const (
	// maxFrame is the longest frame that is read, in bytes.
	maxFrame = 2048

	// History is how many exchanges Last returns at most.
	History = 16

	// After stormFrames refused frames in a row the pump rests for stormRest,
	// and the kernel drops what the socket's buffer does not hold: a guest that
	// floods costs a few percent of a core and not all of it.
	stormFrames = 64
	stormRest   = 10 * time.Millisecond

	// logEvery is the shortest time between two log lines on the same matter.
	logEvery = time.Minute
)

// writeLimit is how often a guest's delegated prefixes may change. Each change is
// on disk before its answer, and is routed.
func writeLimit() Limit { return Limit{Rate: 1, Burst: 20} }

// Unsolicited router advertisements (RFC 4861 §6.2.1, §6.2.4, §10).
const (
	raMax          = 600 * time.Second // MaxRtrAdvInterval
	raMin          = 200 * time.Second // MinRtrAdvInterval
	raInitial      = 16 * time.Second  // MAX_INITIAL_RTR_ADVERT_INTERVAL
	raInitialCount = 3                 // MAX_INITIAL_RTR_ADVERTISEMENTS
	raSpacing      = 3 * time.Second   // MIN_DELAY_BETWEEN_RAS
)

// Counters say what became of the frames of one link since the server was made.
type Counters struct {
	Verdicts    [NumVerdicts]uint64 // every frame that was judged and not limited
	RateLimited uint64              // above the limit of its class: not answered
	SendFailed  uint64              // answers and advertisements that the kernel did not take
	Panics      uint64              // frames that broke the responder: a bug, not answered
}

// Exchange is one frame of a protocol that the responder speaks and what became
// of it.
type Exchange struct {
	At      time.Time
	Verdict Verdict
}

// Server answers the frames of one link. It allocates nothing per frame.
type Server struct {
	conn FrameConn
	log  logrus.FieldLogger
	link atomic.Pointer[Link]

	swapped   chan struct{} // of size 1: a new link is in place
	solicited chan struct{} // of size 1: the guest waits for an RA to all nodes
	moved     atomic.Bool   // the new link has other leases

	verdicts    [NumVerdicts]atomic.Uint64
	rateLimited atomic.Uint64
	sendFailed  atomic.Uint64
	panics      atomic.Uint64

	mu    sync.Mutex
	last  [History]Exchange
	seen  int   // exchanges so far; the newest is last[(seen-1)%History]
	known Guest // what the pump has learned

	keep  func(Kept)
	relay RelayConn // or nil

	// What follows is guarded by state: the pump's, and for a relayed guest that
	// of the goroutine that calls Deliver, too.
	state    sync.Mutex
	guest    Guest
	met      pacer
	declined pacer
	answer   []byte // for Deliver
	started  time.Time
	buckets  [NumClasses]bucket
	writes   bucket // changes of delegated prefixes
	storms   [NumClasses]pacer
	refused  int // frames limited in a row
}

// pacer lets one log line through per logEvery.
type pacer struct {
	next time.Duration
}

func (p *pacer) ready(now time.Duration) bool {
	if now < p.next {
		return false
	}
	p.next = now + logEvery
	return true
}

// NewServer makes the server of one link. It takes over conn: Run closes it.
func NewServer(conn FrameConn, link *Link, limits Limits, log logrus.FieldLogger) *Server {
	s := &Server{
		conn: conn, log: log, started: time.Now(), writes: newBucket(writeLimit()),
		swapped: make(chan struct{}, 1), solicited: make(chan struct{}, 1),
	}
	s.link.Store(link)
	for c := range s.buckets {
		s.buckets[c] = newBucket(limits[c])
	}
	// Of the runtime's ChaCha8, which the kernel has seeded: package crypto/rand
	// would cost every responder memory for one key.
	key := &s.guest.accepts.key
	binary.BigEndian.PutUint64(key[:8], rand.Uint64())
	binary.BigEndian.PutUint64(key[8:], rand.Uint64())
	return s
}

// Restore hands the server what an earlier one has kept, and keep, which is
// called by the pump whenever that changes and must not take long. Call it
// before Run, or not at all.
func (s *Server) Restore(kept Kept, keep func(Kept)) {
	s.guest.Kept, s.known.Kept, s.keep = kept, kept, keep
}

// RelayConn takes messages for the DHCP servers, with their header.
type RelayConn interface {
	// WriteMessage hands a message over or fails at once.
	WriteMessage(message []byte) error
}

// Relay gives the server the way to the DHCP servers. Call it before Run.
func (s *Server) Relay(conn RelayConn) {
	s.relay = conn
	s.answer = make([]byte, MaxReply)
}

// Deliver takes what a DHCP server sent: its family, its index among the binding's
// servers and the message. It counts against the limit of the guest's class.
func (s *Server) Deliver(family, server uint8, message []byte) {
	s.state.Lock()
	defer s.state.Unlock()
	at, before := time.Now(), s.guest
	reply, v, ok := s.fromServer(at, family, server, message)
	now := at.Sub(s.started)
	switch {
	case !ok:
		s.guest = before
		return
	case !s.buckets[v.Class()].take(now):
		s.rateLimited.Add(1)
		s.guest = before
		return
	}
	s.judged(&before, at, now, v)
	if reply != nil {
		s.send(reply)
	}
}

func (s *Server) fromServer(now time.Time, family, server uint8, message []byte) (reply []byte, v Verdict, ok bool) {
	defer s.survive()
	switch link := s.link.Load(); family {
	case 4:
		reply, v = link.FromServer4(&s.guest, now, server, message, s.answer)
	case 6:
		reply, v = link.FromServer6(&s.guest, now, server, message, s.answer)
	default:
		return nil, 0, false
	}
	return reply, v, true
}

// Swap replaces the link between two frames; a router advertisement that tells
// the guest follows at once, and when the guest's leases are others, a RECONFIGURE
// if its client accepts one.
func (s *Server) Swap(link *Link) {
	if old := s.link.Swap(link); link.moves(old) {
		s.moved.Store(true)
	}
	wake(s.swapped) // who is pending will see this link
}

func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Run answers frames and advertises the router until ctx ends (then it returns
// nil) or the connection breaks (then it returns why). It sends nothing when it
// ends: to the guest a restart is invisible. Call it once.
func (s *Server) Run(ctx context.Context) error {
	inner, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() { s.advertise(inner) })
	err := s.pump(inner)
	cancel()
	wg.Wait()
	if ctx.Err() != nil {
		return nil
	}
	return err
}

func (s *Server) pump(ctx context.Context) error {
	in, out := make([]byte, maxFrame), make([]byte, MaxReply)
	rest := time.NewTimer(stormRest)
	defer rest.Stop()
	for {
		n, err := s.conn.ReadFrame(in)
		if err != nil {
			return fmt.Errorf("read a frame: %w", err)
		}
		if s.handle(in[:n], out) {
			s.refused = 0
			continue
		}
		if s.refused++; s.refused < stormFrames {
			continue
		}
		s.refused = 0
		rest.Reset(stormRest)
		select {
		case <-rest.C:
		case <-ctx.Done():
		}
	}
}

// handle judges one frame and sends the answer. A frame above the limit of its
// class counts as limited and nothing else; only then the result is false.
func (s *Server) handle(frame, out []byte) bool {
	s.state.Lock()
	defer s.state.Unlock()
	at := time.Now()
	before := s.guest
	reply, v, ok := s.respond(at, frame, out)
	if !ok {
		s.guest = before
		return true
	}
	now := at.Sub(s.started)
	class := v.Class()
	if !s.buckets[class].take(now) || s.guest.Prefixes != before.Prefixes && !s.writes.take(now) {
		s.rateLimited.Add(1)
		if s.storms[class].ready(now) {
			s.log.WithField("class", class.String()).Warn("the guest sends more requests than are answered: those above the limit are dropped and counted as rate_limited")
		}
		s.guest = before // as if it had not come
		return false
	}
	s.judged(&before, at, now, v)
	if v == DHCP4Decline && s.declined.ready(now) {
		s.log.Warn("the guest has found another machine with its IPv4 address on its own link (DECLINE). Fix: look into the guest for a bridge, container or second interface that answers ARP for it")
	}
	switch {
	case reply == nil:
	case v == RAMulticast:
		wake(s.solicited)
	case v.Relayed():
		if s.relay == nil || s.relay.WriteMessage(reply) != nil {
			s.sendFailed.Add(1) // the client tries again
		}
	default:
		s.send(reply)
	}
	return true
}

// judged counts a message and what became of it.
func (s *Server) judged(before *Guest, at time.Time, now time.Duration, v Verdict) {
	s.verdicts[v].Add(1)
	if s.guest != *before {
		s.learned(before, now)
	}
	if v.Class() == ClassNone {
		return
	}
	s.mu.Lock()
	s.last[s.seen%History] = Exchange{At: at, Verdict: v}
	s.seen++
	s.mu.Unlock()
}

// learned makes known what the pump has learned of the guest: to who asks for
// the state, to the file, and when it is another kind of client to the log.
func (s *Server) learned(before *Guest, now time.Duration) {
	s.mu.Lock()
	s.known = s.guest
	s.mu.Unlock()
	if s.guest.Kept != before.Kept && s.keep != nil {
		s.keep(s.guest.Kept)
	}
	if s.guest.Profile != before.Profile && s.met.ready(now) {
		s.log.WithFields(logrus.Fields{"client": s.guest.Profile.String(), "vendor": s.guest.Vendor()}).Info("the guest's DHCP client is known: this is the kind of lease that it gets")
	}
	if s.guest.Booted != before.Booted {
		s.log.Info("the guest has booted from the network: its firmware gets no boot file any more")
	}
}

func (s *Server) send(frame []byte) {
	if err := s.conn.WriteFrame(frame); err != nil {
		// Counted, not logged: a guest that does not read its frames could
		// fill the log with it.
		s.sendFailed.Add(1)
	}
}

// respond asks the link. The core does not panic on any frame; should it after
// all, the guest loses this answer and not its network.
func (s *Server) respond(now time.Time, frame, out []byte) (reply []byte, v Verdict, ok bool) {
	defer s.survive()
	reply, v = s.link.Load().Respond(&s.guest, now, frame, out)
	return reply, v, true
}

// survive is deferred. The log has the first panic; the counter has them all.
func (s *Server) survive() {
	if p := recover(); p != nil && s.panics.Add(1) == 1 {
		s.log.WithField("panic", fmt.Sprint(p)).Error("a frame broke the responder: please report this as a bug")
	}
}

// advertise sends the router advertisements to all nodes, never two within
// raSpacing (RFC 4861 §6.2.6). When ctx ends it closes the connection, which ends
// the pump.
func (s *Server) advertise(ctx context.Context) {
	out := make([]byte, MaxReply)
	timer := time.NewTimer(0)
	defer timer.Stop()
	again := time.NewTimer(0) // for renew
	defer again.Stop()
	<-again.C
	var renew renewal
	initial := raInitialCount
	var sent time.Time
	for {
		select {
		case <-ctx.Done():
			if err := s.conn.Close(); err != nil {
				s.log.WithError(err).Debug("close the packet socket")
			}
			return
		case <-s.swapped:
			initial = raInitialCount
			timer.Reset(max(0, raSpacing-time.Since(sent)))
			if s.moved.Swap(false) {
				renew = renewal{since: s.renewed()}
				again.Reset(0)
			}
		case <-again.C:
			if wait := renew.next(s, out); wait > 0 {
				again.Reset(wait)
			}
		case <-s.solicited: // counts as the next one (RFC 4861 §6.2.6)
			timer.Reset(max(0, raSpacing-time.Since(sent)))
		case <-timer.C:
			if ra := s.unsolicited(out); ra != nil {
				s.send(ra)
			}
			sent = time.Now()
			wait := raMin + rand.N(raMax-raMin)
			if initial--; initial > 0 {
				wait = min(wait, raInitial)
			}
			timer.Reset(wait)
		}
	}
}

func (s *Server) unsolicited(out []byte) []byte {
	defer s.survive()
	return s.link.Load().Unsolicited(time.Now(), out)
}

// Close closes the connection of a server that does not Run.
func (s *Server) Close() error { return s.conn.Close() }

// Guest returns what is known of the guest now, and the link that it is on.
func (s *Server) Guest() (Guest, *Link) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.known, s.link.Load()
}

// Counters returns the counters as they are now.
func (s *Server) Counters() Counters {
	c := Counters{RateLimited: s.rateLimited.Load(), SendFailed: s.sendFailed.Load(), Panics: s.panics.Load()}
	for v := range c.Verdicts {
		c.Verdicts[v] = s.verdicts[v].Load()
	}
	return c
}

// Last appends the last exchanges to dst, oldest first, History at most.
func (s *Server) Last(dst []Exchange) []Exchange {
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := max(0, s.seen-History); i < s.seen; i++ {
		dst = append(dst, s.last[i%History])
	}
	return dst
}
