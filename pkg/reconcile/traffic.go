package reconcile

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/google/uuid"
	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

const (
	meterEvery  = 30 * time.Second    // between readings, and at most one write of the file
	forgetAfter = 30 * 24 * time.Hour // the sums of a VM that libvirt does not know any more
)

// Meter keeps the sums of what is forwarded to and from each NIC. A host that
// crashes loses what was forwarded since the last reading; the agent may die at
// any time, since the kernel goes on counting.
type Meter struct {
	read  func(context.Context) (map[string]traffic.Traffic, error)
	spool *spool.Spool
	now   func() time.Time
	log   logrus.FieldLogger

	mu    sync.Mutex
	book  *traffic.Book
	dirty bool
	took  []string // records of hooks that are in the book, and not yet in its file
}

// NewMeter reads the file of an earlier one. read reads the kernel's counters, by
// bridge.
func NewMeter(read func(context.Context) (map[string]traffic.Traffic, error), s *spool.Spool, now func() time.Time, log logrus.FieldLogger) *Meter {
	book, err := s.Counters()
	if err != nil {
		log.Error(err)
	}
	m := &Meter{read: read, spool: s, now: now, log: log, book: book}
	id, err := spool.BootID()
	if err != nil {
		log.Warn(err)
	}
	m.book.Booted(id)
	return m
}

// Run reads the counters again and again until ctx ends, and then once more.
func (m *Meter) Run(ctx context.Context) error {
	tick := time.NewTicker(meterEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			last, cancel := context.WithTimeout(context.WithoutCancel(ctx), respTimeout)
			defer cancel()
			m.Collect(last)
			m.Save()
			return nil
		case <-tick.C:
			m.Collect(ctx)
			m.Save()
		}
	}
}

// Collect reads the counters now.
func (m *Meter) Collect(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.collect(ctx)
}

func (m *Meter) collect(ctx context.Context) {
	readings, err := m.read(ctx)
	if err != nil {
		m.log.Warnf("read the traffic counters: %v", err)
		return
	}
	m.dirty = m.book.Observe(readings, m.now()) || m.dirty
	// What a hook removed comes after what is still there: the hook writes its
	// record when the counters are gone.
	m.take()
}

// take adds what hooks have left, and reports whether there was anything.
func (m *Meter) take() bool {
	left, err := m.spool.LeftCounters()
	if err != nil {
		m.log.Warn(err)
	}
	for name, f := range left {
		if m.book.Take(name, f, m.now()) {
			m.dirty, m.took = true, append(m.took, name)
		} else if !slices.Contains(m.took, name) {
			m.took = append(m.took, name) // in the file since before this agent's start
			m.dirty = true
		}
	}
	return len(left) > 0
}

// Save writes the file if there is anything new.
func (m *Meter) Save() {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.save()
}

func (m *Meter) save() {
	if !m.dirty {
		return
	}
	if err := m.spool.WriteCounters(m.book.Document()); err != nil {
		m.log.Warnf("%v; what was counted is in memory only. Fix: see to the disk of %s", err, m.spool.State)
		return
	}
	m.dirty = false
	var gone []string
	for _, name := range m.took {
		if err := m.spool.DropCounters(name); err != nil {
			m.log.Warn(err)
			continue
		}
		gone = append(gone, name)
	}
	m.took = slices.DeleteFunc(m.took, func(n string) bool { return slices.Contains(gone, n) })
	m.book.Discarded(gone...)
}

// During makes changes to the kernel: what they remove is read before, and what
// they add begins at zero. owners are the bridges' afterwards.
func (m *Meter) During(ctx context.Context, changes []state.Change, owners map[string]traffic.Owner, apply func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	type counter struct {
		bridge string
		traffic.Counter
	}
	var begun []counter
	all := false
	for _, c := range changes {
		switch {
		case c.Skeleton != nil:
			all = true
		case c.Elem != nil:
			if i := slices.Index(state.TrafficCounters[:], c.Elem.Set); i >= 0 {
				begun = append(begun, counter{c.Elem.Link, traffic.Counter(i)})
			}
		}
	}
	if all || len(begun) > 0 {
		m.collect(ctx)
	}
	taken := m.take()
	apply()
	for _, c := range begun {
		m.book.Restart(c.bridge, c.Counter)
	}
	if all {
		m.book.RestartAll()
	}
	owned := m.book.Own(owners, m.now())
	if all || len(begun) > 0 || owned || taken {
		m.dirty = true
		m.save()
	}
}

// Sum is what was forwarded to and from a NIC, as far as it was read.
func (m *Meter) Sum(n traffic.NIC) traffic.Traffic {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.book.Sum(n)
}

// Forget removes the sums of VMs that are long gone and that defined does not
// have.
func (m *Meter) Forget(defined []uuid.UUID) {
	m.mu.Lock()
	defer m.mu.Unlock()
	n := m.book.Forget(m.now().Add(-forgetAfter), func(id uuid.UUID) bool { return !slices.Contains(defined, id) })
	if n > 0 {
		m.dirty = true
		m.log.Info(fmt.Sprintf("the traffic counters of %d NICs of VMs that are no more are forgotten", n))
	}
}

// owners says whose each bridge's counters are.
func (p *pass) owners() map[string]traffic.Owner {
	out := map[string]traffic.Owner{}
	for _, v := range p.vms {
		if !v.planned {
			continue
		}
		for _, n := range v.intent.NICs {
			out[n.Bridge] = traffic.Owner{NIC: traffic.NIC{UUID: v.intent.UUID, MAC: n.MAC}, Name: v.intent.Name}
		}
	}
	return out
}
