package reconcile

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/spool"
)

// supervise makes sure that each VM's responder runs and asks for a pass when
// one ends. It works without the lock: a responder that comes up may take as
// long as it likes without holding up a hook.
func (l *Loop) supervise(ctx context.Context, c config.Config, vms map[uuid.UUID]*vm, watchers *sync.WaitGroup) error {
	l.bury()
	launcher := l.Launcher(c.Launch)
	for id, w := range l.watching {
		if v := vms[id]; v == nil || !v.planned {
			w.cancel()
			delete(l.watching, id)
		}
	}
	var errs []error
	for id, v := range vms {
		if !v.planned {
			continue
		}
		if _, ok := l.watching[id]; ok {
			continue
		}
		// The hook that prepares a VM starts its responder itself, and one that
		// has released it has stopped it.
		d, err := l.Spool.Declaration(id)
		switch {
		case err != nil, d.Phase == spool.Stopped, d.Phase == spool.Released:
			continue
		case d.Phase == spool.Preparing && l.Now().Sub(d.At).Abs() < hookTime:
			continue
		}
		if !v.declared {
			// Found running without a declaration: the run directory was wiped, and
			// its responder may have outlived that.
			if err := launcher.EndStrays(ctx, l.Spool.VMDir(id)); err != nil {
				errs = append(errs, fmt.Errorf("responder of %s: %w", v.intent.Name, err))
			}
		}
		if err := l.startWatched(ctx, launcher, id, watchers); err != nil {
			errs = append(errs, fmt.Errorf("responder of %s: %w", v.intent.Name, err))
		}
	}
	return errors.Join(errs...)
}

func (l *Loop) startWatched(ctx context.Context, launcher Launcher, id uuid.UUID, watchers *sync.WaitGroup) error {
	dir := l.Spool.VMDir(id)
	start, cancel := context.WithTimeout(ctx, respTimeout)
	defer cancel()
	if err := launcher.Start(start, dir); err != nil {
		return err
	}
	watchCtx, stop := context.WithCancel(ctx)
	ended, err := launcher.Watch(watchCtx, dir)
	if err != nil {
		stop()
		return err
	}
	l.watching[id] = watch{cancel: stop}
	watchers.Go(func() {
		select {
		case <-ended:
			if watchCtx.Err() == nil {
				l.ended(id)
			}
		case <-watchCtx.Done():
		}
	})
	return nil
}

// ended notes that a responder is no more and asks for a pass, which starts it
// again if its VM still runs.
func (l *Loop) ended(id uuid.UUID) {
	l.mu.Lock()
	l.dead = append(l.dead, id)
	l.mu.Unlock()
	l.Poke("a responder ended", false)
}

// bury forgets the watches of responders that have ended.
func (l *Loop) bury() {
	l.mu.Lock()
	dead := l.dead
	l.dead = nil
	l.mu.Unlock()
	for _, id := range dead {
		if w, ok := l.watching[id]; ok {
			w.cancel()
			delete(l.watching, id)
		}
	}
}
