package agent

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/upstream"
)

const (
	// settle is how long a router upstream has to give its first prefix before the
	// networks that ask it get a unique local one.
	settle = 30 * time.Second
	// goodbye is how long giving a prefix back may take.
	goodbye = 10 * time.Second
)

// upstreams are the DHCPv6 clients that the configuration asks for, one for each
// interface.
type upstreams struct {
	dirs spool.Dirs
	poke func(reason string)
	log  logrus.FieldLogger
	wake chan struct{}

	mu     sync.Mutex
	hints  map[string]uint8 // what is wanted, by interface
	leases map[string][]upstream.Lease
	since  map[string]time.Time
}

func newUpstreams(dirs spool.Dirs, poke func(string), log logrus.FieldLogger) *upstreams {
	return &upstreams{
		dirs: dirs, poke: poke, log: log, wake: make(chan struct{}, 1),
		leases: map[string][]upstream.Lease{}, since: map[string]time.Time{},
	}
}

// set takes the interfaces that a configuration asks on. Of two networks that ask
// on one, the one that asks for more is heard.
func (u *upstreams) set(c config.Config) {
	hints := map[string]uint8{}
	for _, name := range slices.Sorted(maps.Keys(c.Networks)) {
		from := c.Networks[name].Pool6
		if from.Upstream == "" {
			continue
		}
		if have, ok := hints[from.Upstream]; !ok || have == 0 || from.Hint != 0 && from.Hint < have {
			hints[from.Upstream] = from.Hint
		}
	}
	u.mu.Lock()
	u.hints = hints
	u.mu.Unlock()
	select {
	case u.wake <- struct{}{}:
	default:
	}
}

// given is what the router on a link has given, for reconcile.Loop.
func (u *upstreams) given(link string) (spool.Given, bool) {
	u.mu.Lock()
	defer u.mu.Unlock()
	now := time.Now()
	for _, l := range u.leases[link] {
		if l.Preferred.IsZero() || l.Preferred.After(now) {
			return spool.Given{Prefix: l.Prefix, Preferred: l.Preferred, Valid: l.Valid}, true
		}
	}
	since, ok := u.since[link]
	return spool.Given{}, ok && now.Sub(since) >= settle
}

// running is a client at work.
type running struct {
	hint   uint8
	client *upstream.Client
	stop   func() // ends it and waits until it has
}

// run keeps the clients going until ctx ends.
func (u *upstreams) run(ctx context.Context) error {
	clients, looked := map[string]running{}, false
	defer func() {
		for _, r := range clients {
			r.stop()
		}
	}()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-u.wake:
		}
		u.mu.Lock()
		hints := maps.Clone(u.hints)
		u.mu.Unlock()
		for link, r := range clients {
			hint, wanted := hints[link]
			if wanted && hint == r.hint {
				continue
			}
			r.stop()
			delete(clients, link)
			if wanted {
				continue // it starts again, with what it had
			}
			u.forget(link)
			u.release(ctx, link, r.client)
		}
		for link, hint := range hints {
			if _, ok := clients[link]; !ok {
				clients[link] = u.start(ctx, link, hint)
			}
		}
		if !looked {
			looked = true
			u.releaseUnasked(ctx, hints)
		}
	}
}

// releaseUnasked gives back what an agent before this one was given on interfaces
// that are asked no more: the configuration has changed while none ran.
func (u *upstreams) releaseUnasked(ctx context.Context, asked map[string]uint8) {
	links, err := u.dirs.Upstreams()
	if err != nil {
		u.log.Warn(err)
	}
	for _, link := range links {
		if _, ok := asked[link]; !ok {
			u.release(ctx, link, u.client(link, 0))
		}
	}
}

func (u *upstreams) release(ctx context.Context, link string, c *upstream.Client) {
	bye, cancel := context.WithTimeout(ctx, goodbye)
	defer cancel()
	if err := c.Release(bye); err != nil {
		u.log.Warnf("give back the IPv6 prefix of %s: %v", link, err)
	}
}

func (u *upstreams) client(link string, hint uint8) *upstream.Client {
	return &upstream.Client{Interface: link, Hint: hint, State: u.dirs.UpstreamFile(link), Log: u.log.WithField("upstream", link)}
}

func (u *upstreams) forget(link string) {
	u.mu.Lock()
	delete(u.leases, link)
	delete(u.since, link)
	u.mu.Unlock()
	u.poke("upstream of " + link)
}

func (u *upstreams) start(ctx context.Context, link string, hint uint8) running {
	u.mu.Lock()
	u.since[link] = time.Now()
	u.mu.Unlock()
	c := u.client(link, hint)
	c.Changed = func(ls []upstream.Lease) {
		u.mu.Lock()
		u.leases[link] = slices.Clone(ls)
		u.mu.Unlock()
		u.poke("upstream of " + link)
	}
	ctx, cancel := context.WithCancel(ctx)
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := c.Run(ctx); err != nil {
			u.log.Errorf("ask for an IPv6 prefix on %s: %v", link, err)
		}
	})
	wg.Go(func() { u.watch(ctx, link, c.Poke) })
	wg.Go(func() {
		t := time.NewTimer(settle)
		defer t.Stop()
		select {
		case <-t.C:
			u.poke("upstream of " + link)
		case <-ctx.Done():
		}
	})
	return running{hint: hint, client: c, stop: func() { cancel(); wg.Wait() }}
}

// watch calls up whenever the link comes up again: it may be another network's.
func (u *upstreams) watch(ctx context.Context, link string, up func()) {
	updates := make(chan netlink.LinkUpdate)
	err := netlink.LinkSubscribeWithOptions(updates, ctx.Done(), netlink.LinkSubscribeOptions{
		ErrorCallback: func(err error) { u.log.Debugf("watch %s: %v", link, err) },
	})
	if err != nil {
		u.log.Warnf("watch %s: %v; that it comes up again is noticed when the IPv6 prefix is renewed", link, err)
		return
	}
	running := true // as it was when the client started
	for update := range updates {
		if update.Attrs().Name != link {
			continue
		}
		now := update.IfInfomsg.Flags&unix.IFF_RUNNING != 0
		if now && !running {
			up()
		}
		running = now
	}
	if ctx.Err() == nil {
		u.log.Warnf("watch %s: the kernel tells nothing any more; that it comes up again is noticed when the IPv6 prefix is renewed", link)
	}
}
