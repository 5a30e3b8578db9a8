package responder

import (
	"bytes"
	"context"
	"errors"
	"net/netip"
	"os"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/sirupsen/logrus"
	logtest "github.com/sirupsen/logrus/hooks/test"
	"go.uber.org/goleak"

	"github.com/slash32/slash32/pkg/mac"
)

// pipe is a FrameConn in memory: what the test puts into in is read, what is
// written lands in out.
type pipe struct {
	in     chan []byte
	out    chan []byte
	closed chan struct{}
	broken chan error
	full   bool // WriteFrame fails
}

func newPipe() *pipe {
	return &pipe{in: make(chan []byte, 4096), out: make(chan []byte, 4096), closed: make(chan struct{}), broken: make(chan error, 1)}
}

func (p *pipe) ReadFrame(buf []byte) (int, error) {
	select {
	case f := <-p.in:
		return copy(buf, f), nil
	case err := <-p.broken:
		return 0, err
	case <-p.closed:
		return 0, os.ErrClosed
	}
}

func (p *pipe) WriteFrame(f []byte) error {
	if p.full {
		return errors.New("no room")
	}
	p.out <- bytes.Clone(f)
	return nil
}

func (p *pipe) Close() error { close(p.closed); return nil }

var (
	testGuest   = mac.MustParse("52:54:00:00:00:01")
	testGateway = mac.MustParse("02:73:6c:33:32:01")
)

func testLink(t testing.TB) *Link {
	t.Helper()
	l, err := Compile(NIC{
		Bridge: "br0", GuestMAC: testGuest, GatewayMAC: testGateway, MTU: 1500,
		V4: V4{Addr: netip.MustParseAddr("192.0.2.10"), Gateway: netip.MustParseAddr("169.254.0.1"), Lease: 3600, T1: 1800, T2: 3150},
		V6: V6{Gateway: netip.MustParseAddr("fe80::1"), Addrs: []netip.Addr{netip.MustParseAddr("2001:db8::42")}, Preferred: 3600, Valid: 7200, RouterLifetime: 1800},
	})
	if err != nil {
		t.Fatal(err)
	}
	return l
}

// whoHas is the guest's ARP request for the gateway.
func whoHas() []byte {
	f := append(append(append([]byte{}, mac.Broadcast[:]...), testGuest[:]...), 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1)
	f = append(append(f, testGuest[:]...), 192, 0, 2, 10)
	return append(f, 0, 0, 0, 0, 0, 0, 169, 254, 0, 1)
}

func isRA(f []byte) bool { return len(f) > 54 && f[12] == 0x86 && f[13] == 0xdd && f[54] == 134 }

// start runs a server in a synctest bubble until the test ends.
func start(t *testing.T, p *pipe, limits Limits) (*Server, *logtest.Hook) {
	t.Helper()
	log, hook := logtest.NewNullLogger()
	s := NewServer(p, testLink(t), limits, log)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run: %v", err)
		}
	})
	synctest.Wait()
	return s, hook
}

func drain(p *pipe) (frames [][]byte) {
	for {
		select {
		case f := <-p.out:
			frames = append(frames, f)
		default:
			return frames
		}
	}
}

func TestServerAnswersAndCounts(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, _ := start(t, p, DefaultLimits())
		drain(p)
		p.in <- whoHas()
		p.in <- []byte("no frame at all")
		synctest.Wait()
		if got := drain(p); len(got) != 1 || got[0][12] != 8 || got[0][13] != 6 {
			t.Errorf("want one ARP reply, got %x", got)
		}
		if c := s.Counters(); c.Verdicts[ARPReply] != 1 {
			t.Errorf("counters: %+v", c)
		}
		want := []Exchange{{At: time.Now(), Verdict: ARPReply}}
		if d := cmp.Diff(want, s.Last(nil)); d != "" {
			t.Error(d)
		}
	})
}

func TestServerKeepsTheLastExchanges(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, _ := start(t, p, Limits{})
		began := time.Now()
		for range 20 {
			p.in <- whoHas()
			synctest.Wait()
			time.Sleep(time.Second)
		}
		got := s.Last(nil)
		if len(got) != History || !got[0].At.Equal(began.Add(4*time.Second)) || !got[15].At.Equal(began.Add(19*time.Second)) {
			t.Errorf("want the exchanges of seconds 4 to 19, got %v", got)
		}
	})
}

func TestServerLimitsAStorm(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, hook := start(t, p, Limits{ClassARP: {Rate: 10, Burst: 20}})
		drain(p)
		flood := func() {
			for range 1000 {
				p.in <- whoHas()
			}
			synctest.Wait()
		}
		began := time.Now()
		flood()
		// The pump rests in the storm, and the bucket gains a little by it.
		for len(p.in) > 0 {
			time.Sleep(time.Millisecond)
		}
		synctest.Wait()
		rested := time.Since(began)
		answered := 20 + int(rested/(100*time.Millisecond))
		if got := len(drain(p)); got != answered {
			t.Errorf("%d answers in %v, want %d", got, rested, answered)
		}
		if want := time.Duration((1000-answered)/stormFrames) * stormRest; rested < want {
			t.Errorf("the pump rested %v, want %v", rested, want)
		}
		if c := s.Counters(); c.RateLimited != uint64(1000-answered) || c.Verdicts[ARPReply] != uint64(answered) {
			t.Errorf("counters: %d limited, %d answered", c.RateLimited, c.Verdicts[ARPReply])
		}
		flood()
		if n := len(hook.AllEntries()); n != 1 {
			t.Errorf("%d log lines in one storm, want 1", n)
		}
		time.Sleep(2 * time.Minute)
		flood()
		if n := len(hook.AllEntries()); n != 2 {
			t.Errorf("%d log lines after a second storm, want 2", n)
		}
	})
}

func TestServerAdvertises(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		s, _ := start(t, p, DefaultLimits())
		next := func() time.Duration {
			t.Helper()
			from := time.Now()
			f := <-p.out
			if !isRA(f) {
				t.Fatalf("not a router advertisement: %x", f)
			}
			return time.Since(from)
		}
		if d := next(); d != 0 {
			t.Errorf("the first RA comes after %v, want at once", d)
		}
		for range raInitialCount - 1 {
			if d := next(); d > raInitial {
				t.Errorf("an initial RA comes after %v, want at most %v", d, raInitial)
			}
		}
		for range 50 {
			if d := next(); d < raMin || d > raMax {
				t.Errorf("an RA comes after %v, want between %v and %v", d, raMin, raMax)
			}
		}
		time.Sleep(raSpacing)
		s.Swap(testLink(t))
		if d := next(); d != 0 {
			t.Errorf("a new link is advertised after %v, want at once", d)
		}
		s.Swap(testLink(t))
		s.Swap(testLink(t))
		if d := next(); d != raSpacing {
			t.Errorf("two more new links are advertised after %v, want once after %v", d, raSpacing)
		}
		if d := next(); d == 0 {
			t.Error("the second of two swaps had an RA of its own")
		}
	})
}

// What the kernel does not take, and what the core should never do, is counted
// and survived.
func TestServerSurvives(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := newPipe()
		p.full = true
		s, hook := start(t, p, Limits{})
		p.in <- whoHas()
		synctest.Wait()
		if c := s.Counters(); c.SendFailed != 2 || c.Verdicts[ARPReply] != 1 {
			t.Errorf("counters: %+v; want the RA and the reply as failed", c)
		}
		link := s.link.Swap(nil) // every frame panics
		for range 3 {
			p.in <- whoHas()
		}
		synctest.Wait()
		s.link.Store(link)
		p.in <- whoHas()
		synctest.Wait()
		if c := s.Counters(); c.Panics != 3 || c.Verdicts[ARPReply] != 2 {
			t.Errorf("counters: %+v", c)
		}
		if n := len(hook.AllEntries()); n != 1 || hook.LastEntry().Level != logrus.ErrorLevel {
			t.Errorf("%d log lines, want one error", n)
		}
	})
}

func TestServerEndsWithItsConnection(t *testing.T) {
	defer goleak.VerifyNone(t)
	log, _ := logtest.NewNullLogger()
	p := newPipe()
	gone := errors.New("gone")
	p.broken <- gone
	if err := NewServer(p, testLink(t), Limits{}, log).Run(t.Context()); !errors.Is(err, gone) {
		t.Errorf("Run: %v, want %v", err, gone)
	}
	select {
	case <-p.closed:
	default:
		t.Error("the connection is still open")
	}
}

func TestServerAllocatesNothing(t *testing.T) {
	log, _ := logtest.NewNullLogger()
	s := NewServer(discard{}, testLink(t), DefaultLimits(), log)
	frame, out := whoHas(), make([]byte, MaxReply)
	if n := testing.AllocsPerRun(10_000, func() { s.handle(frame, out) }); n != 0 {
		t.Errorf("%v allocations per frame", n)
	}
}

type discard struct{}

func (discard) ReadFrame([]byte) (int, error) { return 0, os.ErrClosed }
func (discard) WriteFrame([]byte) error       { return nil }
func (discard) Close() error                  { return nil }

func TestBucket(t *testing.T) {
	b := newBucket(Limit{Rate: 2, Burst: 3})
	var got []bool
	for _, now := range []time.Duration{0, 0, 0, 0, 400 * time.Millisecond, 500 * time.Millisecond, 600 * time.Millisecond, time.Minute, time.Minute, time.Minute, time.Minute} {
		got = append(got, b.take(now))
	}
	want := []bool{true, true, true, false, false, true, false, true, true, true, false}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
	none := newBucket(Limit{})
	for range 1000 {
		if !none.take(0) {
			t.Fatal("a bucket without a limit refused")
		}
	}
}
