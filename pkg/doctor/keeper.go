package doctor

import (
	"context"
	"slices"
	"sync"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/problem"
)

// The Keeper's times.
const (
	calm    = 100 * time.Millisecond // what happens within it is looked at once
	spacing = 5 * time.Second        // between looks, however much happens
	eager   = time.Second            // the same where coexist says manage: guests wait for it
	period  = time.Minute            // between looks when nothing happens
	look    = 30 * time.Second       // that one may take
)

// Keeper examines the host when something has changed, and keeps the rules that
// coexist asks for. Fill in the exported fields, then Run it.
type Keeper struct {
	Reader
	Guests  func() []Guest
	Changed func() // is called when Warnings has changed
	Log     logrus.FieldLogger

	once sync.Once
	wake chan struct{}

	mu       sync.Mutex
	config   config.Config
	warnings problem.List
}

func (k *Keeper) init() { k.once.Do(func() { k.wake = make(chan struct{}, 1) }) }

// Poke says that something may have changed; it returns at once.
func (k *Keeper) Poke() {
	k.init()
	select {
	case k.wake <- struct{}{}:
	default:
	}
}

// SetConfig gives the configuration, the first and each new one.
func (k *Keeper) SetConfig(c config.Config) {
	k.mu.Lock()
	k.config = c
	k.mu.Unlock()
	k.Poke()
}

// Warnings are the findings of the last look that are more than notes.
func (k *Keeper) Warnings() problem.List {
	k.mu.Lock()
	defer k.mu.Unlock()
	return slices.Clone(k.warnings)
}

// Run looks until ctx ends.
func (k *Keeper) Run(ctx context.Context) error {
	k.init()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		k.look(ctx)
		// The first change after a quiet time is looked at soon, the next not before
		// spacing is over.
		next := time.Now().Add(k.spacing())
		timer.Reset(period)
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
			timer.Reset(0)
		case <-k.wake:
			timer.Reset(max(calm, time.Until(next)))
		}
	}
}

func (k *Keeper) spacing() time.Duration {
	k.mu.Lock()
	defer k.mu.Unlock()
	if c := k.config.Coexist; c.Docker == config.Manage || c.UFW == config.Manage || c.Firewalld == config.Manage {
		return eager
	}
	return spacing
}

// look examines once.
func (k *Keeper) look(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, look)
	defer cancel()
	k.mu.Lock()
	c := k.config
	k.mu.Unlock()
	found, err := k.Look(ctx, k.Guests(), c)
	if err != nil {
		if ctx.Err() == nil {
			k.Log.Warnf("look for what keeps guests offline: %v", err)
		}
		return
	}
	var now problem.List
	for _, f := range found {
		// Forwarding is part of the plan, and so warned of by the loop.
		if f.Impact != Note && f.Code != problem.WNoForward {
			now = append(now, f.Problem)
		}
	}
	k.mu.Lock()
	changed := !slices.Equal(now, k.warnings)
	k.warnings = now
	k.mu.Unlock()
	if changed {
		k.Changed()
	}
}

// Look reads the facts, brings the rules that coexist asks for to what is needed, and
// examines what is then.
func (k *Keeper) Look(ctx context.Context, guests []Guest, c config.Config) ([]Finding, error) {
	f, err := k.Read(ctx, guests, c)
	if err != nil {
		return nil, err
	}
	changed := false
	var failed []Finding
	for _, p := range places() {
		if !has(f.Rules, p.Family, p.Table, p.Chain) {
			continue
		}
		wanted := p.mode(c.Coexist) == config.Manage && f.needed(p)
		wrote, err := k.Kernel.Open(ctx, p.Opening, wanted)
		if err != nil {
			failed = append(failed, finding(problem.WCoexist, Risk, err.Error(), "write warn instead of manage, and do as the warning then says")...)
			continue
		}
		if wrote {
			changed = true
			if wanted {
				k.Log.Infof("coexist: guests are let through in chain %s", p.Opening)
			} else {
				k.Log.Infof("coexist: the rules for guests are out of chain %s", p.Opening)
			}
		}
	}
	if changed {
		if f, err = k.Read(ctx, guests, c); err != nil {
			return nil, err
		}
	}
	return append(Examine(f), failed...), nil
}
