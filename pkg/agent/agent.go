// Package agent wires the loop to what wakes it (libvirt, the kernel, the
// agent's socket, signals) and to systemd.
package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"strconv"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
	"github.com/google/uuid"
	"github.com/sirupsen/logrus"
	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/doctor"
	"github.com/slash32/slash32/pkg/evidence"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/launch"
	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/reconcile"
	"github.com/slash32/slash32/pkg/relay"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/userhook"
	"github.com/slash32/slash32/pkg/version"
	"github.com/slash32/slash32/pkg/virt"
)

// tablesTimeout is how long the lock is waited for when a routing table is to be
// allocated.
const tablesTimeout = 20 * time.Second

// Options is what the agent is started with.
type Options struct {
	Dirs      spool.Dirs
	Responder string // the responder's program
	Log       logrus.FieldLogger
	Reload    <-chan os.Signal // each value reads the configuration again
}

// Run is the agent. It returns when ctx ends (nil) or when it can't go on.
func Run(ctx context.Context, o Options) error {
	c, ps := config.Load(o.Dirs.Config)
	if fatal := ps.Fatal(); len(fatal) > 0 {
		return fatal
	}
	for _, p := range ps {
		o.Log.Warn(p.String())
	}
	s, err := spool.Open(o.Dirs)
	if err != nil {
		return err
	}
	if c, err = allocateTables(ctx, s, c); err != nil {
		return err
	}
	k, err := kernel.New(o.Log)
	if err != nil {
		return fmt.Errorf("open the kernel's interfaces: %w", err)
	}
	defer k.Close()
	l, err := listen(o.Dirs.Socket())
	if err != nil {
		return err
	}
	host, err := os.Hostname()
	if err != nil {
		host = "localhost"
	}
	v := virt.New(c.LibvirtURI, o.Log)
	loop := &reconcile.Loop{
		Kernel:   k,
		Virt:     v,
		Launcher: func(mode string) reconcile.Launcher { return launch.New(mode, o.Responder, o.Log) },
		Reload: func(ctx context.Context, socket string) error {
			_, err := control.ReloadResponder(ctx, socket)
			return err
		},
		Announce: probe.Announce,
		Spool:    s, Config: c, Now: time.Now, Log: o.Log, Version: version.Version, Host: host,
	}
	carrier := &relay.Relay{
		Changed:     func(vm uuid.UUID) { loop.Poke("lease of "+vm.String(), false) },
		Credentials: credentials(),
		Log:         o.Log,
	}
	loop.Relay = carrier.Set
	hooks := &userhook.Runner{File: filepath.Join(o.Dirs.Run, "prefixes.json"), Log: o.Log}
	loop.Prefixes = hooks.Set
	up := newUpstreams(o.Dirs, func(reason string) { loop.Poke(reason, false) }, o.Log)
	up.set(c)
	loop.Upstream = up.given
	keeper := &doctor.Keeper{
		Reader:  doctor.Reader{Kernel: k},
		Guests:  func() []doctor.Guest { return doctor.Guests(loop.Status()) },
		Changed: func() { loop.Poke("other programs", false) },
		Log:     o.Log,
	}
	keeper.SetConfig(c)
	loop.Neighbours, loop.Writers, k.Foreign = keeper.Warnings, k.Writers, keeper.Poke
	loop.Traffic = reconcile.NewMeter(k.Traffic, s, time.Now, o.Log)
	samples := &evidence.Runner{Link: k.LinkName, VM: loop.OnBridge, Now: time.Now, Log: o.Log}
	samples.Set(c.LogDrops)
	a := &agent{Options: o, loop: loop, kernel: k, spool: s, meter: loop.Traffic, samples: samples, upstreams: up, keeper: keeper}

	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() error { return loop.Run(ctx) })
	g.Go(func() error { return loop.Traffic.Run(ctx) })
	g.Go(func() error {
		return v.Run(ctx, func(reason string) { loop.Poke("libvirt: "+reason, true) })
	})
	g.Go(func() error {
		return k.Watch(ctx, func(reason string) {
			loop.Poke("kernel: "+reason, false)
			keeper.Poke()
		})
	})
	g.Go(func() error { return keeper.Run(ctx) })
	g.Go(func() error { return carrier.Run(ctx) })
	g.Go(func() error { return hooks.Run(ctx) })
	g.Go(func() error { return samples.Run(ctx) })
	g.Go(func() error { return up.run(ctx) })
	g.Go(func() error { return control.Serve(ctx, l, a.serve) })
	g.Go(func() error { return a.signals(ctx) })
	g.Go(func() error { return a.notify(ctx) })
	if err := g.Wait(); err != nil && !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// credentials tells which users may be a responder: root, until it has dropped its
// rights, the account, and nobody, who stands in where there is no account.
func credentials() func(uid uint32) bool {
	const nobody = 65534
	account := uint32(nobody)
	if u, err := user.Lookup(marks.User); err == nil {
		if id, err := strconv.ParseUint(u.Uid, 10, 32); err == nil {
			account = uint32(id)
		}
	}
	return func(uid uint32) bool { return uid == 0 || uid == account }
}

// listen binds the agent's socket. A stale one is taken over; a second agent is
// refused.
func listen(path string) (net.Listener, error) {
	if c, err := net.Dial("unix", path); err == nil {
		_ = c.Close()
		return nil, fmt.Errorf("another slash32d answers on %s. Fix: stop it first (systemctl stop slash32d)", path)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("remove the last agent's socket: %w", err)
	}
	l, err := net.Listen("unix", path)
	if err != nil {
		return nil, fmt.Errorf("open the agent's socket: %w", err)
	}
	if err := os.Chmod(path, 0o660); err != nil {
		_ = l.Close()
		return nil, fmt.Errorf("open the agent's socket: %w", err)
	}
	return l, nil
}

type agent struct {
	Options
	loop   *reconcile.Loop
	kernel *kernel.Kernel
	spool  *spool.Spool
	meter  *reconcile.Meter

	samples *evidence.Runner

	upstreams *upstreams
	keeper    *doctor.Keeper
}

// signals reads the configuration again when asked to.
func (a *agent) signals(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-a.Reload:
			if err := a.reload(); err != nil {
				a.Log.Errorf("reload: %v; the configuration stays as it was", err)
			}
		}
	}
}

// reload reads the configuration again. A wrong one changes nothing.
func (a *agent) reload() error {
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReloading+"\n"+monotonicUsec()); err != nil {
		a.Log.Debugf("notify systemd: %v", err)
	}
	defer func() {
		if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
			a.Log.Debugf("notify systemd: %v", err)
		}
	}()
	c, ps := config.Load(a.Dirs.Config)
	if fatal := ps.Fatal(); len(fatal) > 0 {
		return fatal
	}
	c, err := allocateTables(context.Background(), a.spool, c)
	if err != nil {
		return err
	}
	a.loop.SetConfig(c)
	a.upstreams.set(c)
	a.keeper.SetConfig(c)
	a.samples.Set(c.LogDrops)
	a.Log.Info("configuration read")
	return nil
}

// allocateTables waits for a hook's or a pass's end at most.
func allocateTables(ctx context.Context, s *spool.Spool, c config.Config) (config.Config, error) {
	ctx, cancel := context.WithTimeout(ctx, tablesTimeout)
	defer cancel()
	return s.AllocateTables(ctx, c)
}

// notify tells systemd that the agent is ready, and goes on feeding its
// watchdog for as long as passes end.
func (a *agent) notify(ctx context.Context) error {
	if err := a.loop.Sync(ctx); err != nil && ctx.Err() == nil {
		a.Log.Warnf("first pass: %v", err)
	}
	if _, err := daemon.SdNotify(false, daemon.SdNotifyReady); err != nil {
		a.Log.Warnf("notify systemd: %v", err)
	}
	defer func() { _, _ = daemon.SdNotify(false, daemon.SdNotifyStopping) }()
	every, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		a.Log.Warnf("watchdog: %v", err)
	}
	if every == 0 {
		<-ctx.Done()
		return nil
	}
	tick := time.NewTicker(every / 3)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if !a.loop.Healthy() {
				a.Log.Error("a pass hangs; the watchdog is not fed any more")
				continue
			}
			if _, err := daemon.SdNotify(false, daemon.SdNotifyWatchdog); err != nil {
				a.Log.Warnf("notify systemd: %v", err)
			}
		}
	}
}
