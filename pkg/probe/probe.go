// Package probe asks the network whether somebody has an address already: by ARP
// (RFC 5227 §2.1), Neighbour Discovery (RFC 4862 §5.4) and ICMP echo (RFC 2131
// §3.1), out of one interface and within one bounded wait; and it tells neighbours
// where an address is now. It sends from raw sockets, a few frames per address, and
// changes nothing on this host.
package probe

import (
	"context"
	"fmt"
	"net/netip"
	"sync"
	"time"
)

// Target is one address and the interface behind which it is looked for.
type Target struct {
	Addr netip.Addr
	Link string
	ARP  bool // ARP, or for IPv6 a neighbour solicitation
	ICMP bool // an echo request
}

// Hit says that somebody has an address.
type Hit struct {
	Addr netip.Addr
	By   string // like "answers ARP at 52:54:00:ab:cd:01 on eth0"
}

// maxTargets bounds the frames of one run.
const maxTargets = 256

// Run probes all targets at once and returns who answered when wait is over, or
// earlier when all have. What could not be probed is in errs; it hides nothing of
// the others.
func Run(ctx context.Context, targets []Target, wait time.Duration) (hits []Hit, errs []error) {
	if len(targets) > maxTargets {
		errs = append(errs, fmt.Errorf("only %d of %d addresses were probed", maxTargets, len(targets)))
		targets = targets[:maxTargets]
	}
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	c := collector{waiting: map[netip.Addr]bool{}, done: cancel}
	for _, t := range targets {
		c.waiting[t.Addr] = true
	}
	var wg sync.WaitGroup
	for _, j := range split(targets) {
		s, err := j.open(j.link, j.v6) // in the caller's network namespace
		if err != nil {
			c.failed(err)
			continue
		}
		wg.Go(func() {
			defer s.close()
			if err := j.run(ctx, s, &c); err != nil {
				c.failed(err)
			}
		})
	}
	wg.Wait()
	return c.hits, append(errs, c.errs...)
}

// job is what one socket asks.
type job struct {
	link  string
	addrs []netip.Addr
	v6    bool
	open  func(link string, v6 bool) (socket, error)
}

// socket sends questions and reads answers. read returns the address that
// somebody has, or an invalid one for what is no answer, until the deadline has
// passed.
type socket interface {
	ask(a netip.Addr) error
	read() (a netip.Addr, by string, err error)
	deadline(t time.Time) error
	close()
}

// split sorts the targets by the socket that they need.
func split(targets []Target) []job {
	type key struct {
		link     string
		v6, icmp bool
	}
	index := map[key]int{}
	var jobs []job
	add := func(k key, a netip.Addr) {
		i, ok := index[k]
		if !ok {
			i = len(jobs)
			index[k] = i
			open := openLink
			if k.icmp {
				open = openEcho
			}
			jobs = append(jobs, job{link: k.link, v6: k.v6, open: open})
		}
		jobs[i].addrs = append(jobs[i].addrs, a)
	}
	for _, t := range targets {
		if t.ARP {
			add(key{t.Link, t.Addr.Is6(), false}, t.Addr)
		}
		if t.ICMP {
			add(key{t.Link, t.Addr.Is6(), true}, t.Addr)
		}
	}
	return jobs
}

// run asks twice, since a frame may be lost, and listens in between.
func (j job) run(ctx context.Context, s socket, c *collector) error {
	end, _ := ctx.Deadline()
	stop := context.AfterFunc(ctx, func() { _ = s.deadline(time.Unix(1, 0)) })
	defer stop()
	wait := time.Until(end)
	for _, until := range []time.Time{time.Now().Add(wait / 2), end} {
		for _, a := range j.addrs {
			if err := s.ask(a); err != nil {
				return fmt.Errorf("probe for %s on %s: %w", a, j.link, err)
			}
		}
		if err := s.deadline(until); err != nil {
			return fmt.Errorf("probe on %s: %w", j.link, err)
		}
		for ctx.Err() == nil {
			a, by, err := s.read()
			if err != nil {
				break // the deadline
			}
			if a.IsValid() {
				c.hit(a, by)
			}
		}
		if ctx.Err() != nil {
			break
		}
	}
	return nil
}

// collector gathers what the sockets find.
type collector struct {
	mu      sync.Mutex
	waiting map[netip.Addr]bool
	hits    []Hit
	errs    []error
	done    func()
}

func (c *collector) hit(a netip.Addr, by string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.waiting[a] {
		return // not asked, or known already
	}
	delete(c.waiting, a)
	c.hits = append(c.hits, Hit{a, by})
	if len(c.waiting) == 0 {
		c.done()
	}
}

func (c *collector) failed(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.errs = append(c.errs, err)
}
