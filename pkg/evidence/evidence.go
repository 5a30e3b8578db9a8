// Package evidence writes a few of the packets that the guards drop to the log,
// with the VM's name: the kernel sends samples to a netlink group, and this package
// is the only one that listens to it.
package evidence

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/sirupsen/logrus"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/marks"
)

// retryAfter is the pause before another attempt to listen.
const retryAfter = 30 * time.Second

// Runner writes the samples to Log. Fill in the exported fields, then Run it.
type Runner struct {
	Link func(index int) string          // an interface's name; "" when it is gone
	VM   func(bridge string) (vm string) // the name of the VM on a bridge; "" when it is not known
	Now  func() time.Time
	Log  logrus.FieldLogger

	once sync.Once
	wake chan struct{}

	mu      sync.Mutex
	enabled bool

	sampler sampler // of the goroutine of Run
}

func (r *Runner) init() { r.once.Do(func() { r.wake = make(chan struct{}, 1) }) }

// Set turns the samples on or off; at first they are off.
func (r *Runner) Set(on bool) {
	r.init()
	r.mu.Lock()
	r.enabled = on
	r.mu.Unlock()
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

func (r *Runner) on() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.enabled
}

// Run listens while the samples are on, until ctx ends. A kernel that cannot be
// listened to is said and tried again: nothing else depends on it.
func (r *Runner) Run(ctx context.Context) error {
	r.init()
	for ctx.Err() == nil {
		if !r.on() {
			select {
			case <-ctx.Done():
			case <-r.wake:
			}
			continue
		}
		err := r.listen(ctx)
		if err == nil {
			continue
		}
		r.Log.Warnf("samples of dropped packets cannot be had: %v; next try in %v. Fix: see that no other program has nfnetlink_log's group %d, or set log_drops: false", err, retryAfter, marks.LogGroup)
		pause := time.NewTimer(retryAfter)
		select {
		case <-ctx.Done():
		case <-r.wake:
		case <-pause.C:
		}
		pause.Stop()
	}
	return nil
}

// listen reads samples until ctx ends, they are turned off, or it fails.
func (r *Runner) listen(ctx context.Context) error {
	c, err := subscribe(marks.LogGroup)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	var stopper sync.WaitGroup
	stopper.Go(func() {
		for r.on() {
			select {
			case <-r.wake:
				continue
			case <-ctx.Done():
			}
			break
		}
		_ = c.SetReadDeadline(time.Unix(1, 0)) // a read that waits fails at once
	})
	defer func() {
		cancel()
		stopper.Wait()
		_ = c.Close()
	}()
	for {
		messages, err := c.Receive()
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOBUFS):
			continue // some are lost: they are samples
		case ctx.Err() != nil || !r.on():
			return nil
		default:
			return fmt.Errorf("read from group %d: %w", marks.LogGroup, err)
		}
		for _, m := range messages {
			if s, ok := parse(m.Data); ok {
				r.sample(s)
			}
		}
	}
}

// sample writes one packet to the log, unless there were enough of its kind.
func (r *Runner) sample(s sample) {
	bridge := r.Link(s.link)
	if bridge == "" || !r.sampler.allow(bridge, s.reason, r.Now()) {
		return
	}
	name := r.VM(bridge)
	if name == "" {
		name = bridge
	}
	r.Log.WithFields(logrus.Fields{"vm": name, "bridge": bridge, "reason": s.reason}).Warnf("dropped %s: %s", reason(s.reason), s.Packet)
}
