// Package reconcile is the agent's loop: it compares what should be (libvirt's
// list, the declarations, the configuration) with what is (the kernel's dump)
// and applies the difference. Every event only makes it look again.
package reconcile

import (
	"context"
	"net/netip"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/relay"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/userhook"
	"github.com/slash32/slash32/pkg/virt"
)

// Kernel is what the loop needs of the kernel.
type Kernel interface {
	Read(context.Context, state.Scope) (state.State, error)
	Apply(context.Context, []state.Change) (int, error)
	Facts(context.Context, ...string) (plan.Facts, error)
	Bridge(context.Context, string) (kernel.BridgeInfo, error)
	Listeners(context.Context) ([]intent.Listener, error)
}

// Lister lists libvirt's active domains. An error means that the list is not
// known, not that it is empty.
type Lister interface {
	Snapshot(context.Context) ([]virt.Domain, error)
	// Defined lists the UUIDs of all domains, active or not.
	Defined(context.Context) ([]uuid.UUID, error)
}

// Launcher starts, stops and watches the responder of the VM whose directory is
// given. The channel that Watch returns is closed when the process ends.
type Launcher interface {
	Start(ctx context.Context, vmDir string) error
	Stop(ctx context.Context, vmDir string) error
	Watch(ctx context.Context, vmDir string) (<-chan struct{}, error)
	// EndStrays ends responders of the VM that run although nothing in its
	// directory leads to them.
	EndStrays(ctx context.Context, vmDir string) error
}

// Reload tells a responder to read its binding again.
type Reload func(ctx context.Context, socket string) error

// Loop is the reconciler. Fill in the exported fields, then Run it.
type Loop struct {
	Kernel   Kernel
	Virt     Lister
	Launcher func(mode string) Launcher
	Reload   Reload
	Relay    func([]relay.VM) // takes the VMs whose guests are relayed; may be nil
	// Prefixes takes the prefixes that are routed to guests and the program that is
	// to be told of them; may be nil.
	Prefixes func(program string, now []userhook.Prefix)
	// Upstream is what the router on a link has given, valid or not; settled is false
	// while that is not known yet. May be nil: then nothing is given.
	Upstream func(link string) (given spool.Given, settled bool)
	// Announce tells the neighbours on an uplink of addresses that the host has
	// begun to answer for there; it may take seconds, and may be nil.
	Announce func(ctx context.Context, link string, addrs []netip.Addr) error
	// Neighbours are the warnings of what else on the host keeps guests offline; may
	// be nil.
	Neighbours func() problem.List
	// Writers are the other programs that have changed our table since it was asked
	// last; may be nil.
	Writers func() []kernel.Writer
	// Traffic counts for billing; may be nil.
	Traffic *Meter
	Spool   *spool.Spool
	Config  config.Config // the first; SetConfig changes it
	Now     func() time.Time
	Log     logrus.FieldLogger
	Version string
	Host    string

	once sync.Once
	wake chan struct{}
	sync chan chan error

	mu      sync.Mutex
	config  config.Config
	stale   bool // libvirt's list may have changed
	reasons map[string]struct{}
	dead    []uuid.UUID // VMs whose responder has ended
	status  control.Status
	xml     map[uuid.UUID]string // of the VMs in status
	begun   time.Time            // of the pass under way; zero when idle

	// What follows belongs to the goroutine of Run.
	listed   listing
	good     map[uuid.UUID]intent.VM // the last valid intent of each VM that was programmed
	since    map[uuid.UUID]time.Time
	watching map[uuid.UUID]watch
	repairs  []time.Time
	culprits []kernel.Writer     // in those repairs
	wanted   state.State         // of the last pass
	waiting  bool                // for a list that is newer than a VM's end
	warned   map[string]struct{} // problems that have been logged
	expiry   time.Time           // when the next lease or pool ends; zero: none does
	bases    map[string]string   // the networks' pools as they were said last
	defined  []uuid.UUID         // what libvirt defines, when that was asked in this pass
	swept    time.Time           // when lease files were last looked through
	first    bool
}

// watch is the supervision of one responder; cancel ends its goroutine.
type watch struct {
	cancel context.CancelFunc
}

// listing is libvirt's list at a moment before or at which it was asked for.
type listing struct {
	at      time.Time
	domains map[uuid.UUID]virt.Domain
	err     error
	errAt   time.Time // since when the list has been unknown
	triedAt time.Time // the last failure
	said    bool      // and logged
}

// The loop's times.
const (
	Period       = 30 * time.Second // between passes when nothing happens
	listTimeout  = 3 * time.Second
	lockTimeout  = 15 * time.Second
	retryMin     = 100 * time.Millisecond
	retryMax     = 30 * time.Second
	respTimeout  = 5 * time.Second
	hookTime     = 10 * time.Second // within it the hook itself starts a responder
	relistAfter  = 2 * time.Second  // between attempts while the list is unknown
	sayAfter     = time.Second      // a list unknown for so long is worth a line
	stuckAfter   = 60 * time.Second // a pass that takes longer is taken for hung
	revivedAfter = time.Minute      // a tombstone that libvirt contradicts for so long is wrong
)

func (l *Loop) init() {
	l.once.Do(func() {
		l.wake = make(chan struct{}, 1)
		l.sync = make(chan chan error)
		l.reasons = map[string]struct{}{}
		l.config = l.Config
		l.stale = true
		l.good = map[uuid.UUID]intent.VM{}
		l.since = map[uuid.UUID]time.Time{}
		l.watching = map[uuid.UUID]watch{}
		l.warned = map[string]struct{}{}
		l.first = true
		l.status = control.Status{Version: l.Version, Host: l.Host, Since: l.Now()}
	})
}

// Poke asks for a pass and returns at once. relist says that libvirt's list may
// have changed.
func (l *Loop) Poke(reason string, relist bool) {
	l.init()
	l.mu.Lock()
	l.stale = l.stale || relist
	if len(l.reasons) < 8 {
		l.reasons[reason] = struct{}{}
	}
	l.mu.Unlock()
	select {
	case l.wake <- struct{}{}:
	default:
	}
}

// Sync runs a pass with a fresh list and returns its outcome.
func (l *Loop) Sync(ctx context.Context) error {
	l.init()
	l.mu.Lock()
	l.stale = true
	l.mu.Unlock()
	done := make(chan error, 1)
	select {
	case l.sync <- done:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-done:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// SetConfig replaces the configuration and asks for a pass.
func (l *Loop) SetConfig(c config.Config) {
	l.init()
	l.mu.Lock()
	l.config = c
	l.mu.Unlock()
	l.Poke("configuration", false)
}

// Status is the outcome of the last pass. Counters of guards and responders are
// not in it.
func (l *Loop) Status() control.Status {
	l.init()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := l.status
	s.VMs = append([]control.VM{}, s.VMs...)
	return s
}

// Healthy tells whether passes end. It is what the watchdog asks.
func (l *Loop) Healthy() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.begun.IsZero() || l.Now().Sub(l.begun) < stuckAfter
}

// Run makes passes until ctx ends: one at once, then one for each Poke, Sync or
// Period, and after a failed one another after a growing pause. It returns when
// all its goroutines have.
func (l *Loop) Run(ctx context.Context) error {
	l.init()
	var watchers sync.WaitGroup
	defer watchers.Wait()
	defer func() {
		for _, w := range l.watching {
			w.cancel()
		}
	}()
	retry := retryMin
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		var done chan error
		select {
		case <-ctx.Done():
			return nil
		case done = <-l.sync:
		case <-l.wake:
		case <-timer.C:
			l.mu.Lock()
			l.stale = true
			l.mu.Unlock()
		}
		err := l.pass(ctx, &watchers)
		if done != nil {
			done <- err
		}
		if ctx.Err() != nil {
			return nil
		}
		pause := Period
		if err != nil {
			l.Log.Errorf("pass: %v; next try in %v", err, retry)
			pause = retry
			retry = min(2*retry, retryMax)
		} else {
			retry = retryMin
		}
		if l.listed.err != nil || l.waiting {
			pause = min(pause, relistAfter)
		}
		if !l.expiry.IsZero() {
			pause = max(retryMin, min(pause, l.expiry.Sub(l.Now())))
		}
		timer.Reset(pause)
	}
}

// vm is one VM in a pass.
type vm struct {
	intent   intent.VM
	asked    intent.VM // the same before it was given anything of a pool or by a server
	decl     spool.Declaration
	declared bool
	domain   virt.Domain
	listed   bool
	problems problem.List
	planned  bool   // its intent is in the plan
	conflict bool   // it is not, since another VM has what it claims
	xml      string // what its intent is derived from; "": from the last valid one
	taps     map[mac.Addr]string
	leases   map[mac.Addr][]leased // of relayed NICs

	delegated map[mac.Addr][]delegated
}
