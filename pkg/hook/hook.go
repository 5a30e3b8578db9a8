// Package hook decides what each operation of libvirt's qemu hook does. It
// works without the agent and without libvirt (a call to libvirt from inside a
// hook deadlocks), and it changes the kernel only under the spool's lock.
package hook

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"time"

	"github.com/sirupsen/logrus"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/probe"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/source"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// Kernel is what the hook needs of the kernel.
type Kernel interface {
	Read(context.Context, state.Scope) (state.State, error)
	Apply(context.Context, []state.Change) (int, error)
	Facts(context.Context, ...string) (plan.Facts, error)
	Bridge(context.Context, string) (kernel.BridgeInfo, error)
	RouteOwner(context.Context, netip.Prefix) (string, error)
	HostRoute(ctx context.Context, a netip.Addr, table uint32) (kernel.HostRoute, bool, error)
	Listeners(context.Context) ([]intent.Listener, error)
	TrafficOf(ctx context.Context, links []string) (map[string]traffic.Traffic, error)
	Close()
}

// Launcher starts and stops the responder of the VM whose directory is given.
type Launcher interface {
	Start(ctx context.Context, vmDir string) error
	Stop(ctx context.Context, vmDir string) error
	WaitReady(ctx context.Context, vmDir string) error
}

// Hook runs operations. The functions are called only by operations that need
// what they make.
type Hook struct {
	Dirs     spool.Dirs
	Kernel   func() (Kernel, error)
	Launcher func(mode string) Launcher
	// Poke tells the agent to look again and reports whether one listens.
	Poke func(vm string) bool
	// Probe asks the uplinks' networks who has an address.
	Probe func(ctx context.Context, targets []probe.Target, wait time.Duration) ([]probe.Hit, []error)
	Now   func() time.Time
	Log   logrus.FieldLogger
}

// The bounds on what an operation waits for.
const (
	lockTimeout  = 20 * time.Second // passes and hooks are short, but wait for the kernel's RTNL lock
	readyTimeout = 5 * time.Second  // from the responder's start to its socket's answer
)

// Run does what libvirt asks: args are the hook's arguments (domain's name,
// operation, sub-operation, "-"), xml is its standard input. A returned error
// refuses the operation; Run returns one for prepare only, since
// libvirt kills a running VM whose reconnect hook fails and ignores the others.
func (h *Hook) Run(ctx context.Context, args []string, stdin io.Reader) error {
	if len(args) < 2 {
		return errors.New("called without a domain and an operation; libvirt calls this program as hooks/qemu.d/slash32 NAME OPERATION SUBOPERATION -")
	}
	name, op := args[0], args[1]
	switch op {
	case "prepare", "started", "stopped", "release", "reconnect", "attach", "migrate":
	default: // start (prepare has done all), restore, and what a later libvirt may add
		return nil
	}
	xml, err := io.ReadAll(io.LimitReader(stdin, annotation.MaxXML+1))
	if err != nil {
		return h.refuse(op, fmt.Errorf("read the XML of %s: %w", name, err))
	}
	if len(xml) > annotation.MaxXML {
		if !annotation.Mentions(xml) && !h.known(xml) {
			return nil
		}
		return h.refuse(op, problem.List{{Code: problem.EXML, VM: name, What: fmt.Sprintf("the domain's XML is longer than %d bytes", annotation.MaxXML)}})
	}
	if !annotation.Mentions(xml) && !h.known(xml) && !h.hasFile(name, xml) {
		return nil
	}
	return h.refuse(op, h.run(ctx, op, name, xml))
}

func (h *Hook) run(ctx context.Context, op, name string, xml []byte) error {
	s, err := spool.Open(h.Dirs)
	if err != nil {
		return err
	}
	o := &operation{Hook: h, spool: s, name: name, xml: xml}
	defer o.close()
	switch op {
	case "migrate":
		if id, ok := source.UUID(xml); ok {
			return s.MarkIncoming(id, h.Now())
		}
		return nil
	case "prepare":
		return o.prepare(ctx)
	case "reconnect", "attach":
		return o.ensure(ctx)
	}
	id, ok := source.UUID(xml)
	if !ok {
		return nil
	}
	unlock, err := o.lock(ctx)
	if err != nil {
		return err
	}
	defer unlock()
	switch op {
	case "started":
		return o.started(id)
	case "stopped":
		return o.stopped(ctx, id)
	case "release":
		return o.release(ctx, id)
	}
	return nil
}

// refuse passes an error on where it may refuse the operation, and logs it
// where it must not.
func (h *Hook) refuse(op string, err error) error {
	if err == nil || op == "prepare" {
		return err
	}
	h.Log.Errorf("%s: %v", op, err)
	return nil
}

// known tells whether the spool has the domain: then it was annotated when it
// started, whatever its XML says now.
func (h *Hook) known(xml []byte) bool {
	id, ok := source.UUID(xml)
	if !ok {
		return false
	}
	_, err := os.Stat(h.Dirs.VMDir(id))
	return err == nil
}

func (h *Hook) hasFile(name string, xml []byte) bool {
	id, _ := source.UUID(xml)
	_, b, err := config.DomainFile(h.Dirs.Config, name, id.String())
	return b != nil || err != nil
}

// operation is one call of the hook.
type operation struct {
	*Hook
	spool  *spool.Spool
	kernel Kernel
	name   string
	xml    []byte
}

func (o *operation) close() {
	if o.kernel != nil {
		o.kernel.Close()
	}
}

// openKernel opens the kernel once per operation.
func (o *operation) openKernel() error {
	if o.kernel != nil {
		return nil
	}
	k, err := o.Hook.Kernel()
	if err != nil {
		return fmt.Errorf("open the kernel's interfaces: %w", err)
	}
	o.kernel = k
	return nil
}

func (o *operation) lock(ctx context.Context) (func(), error) {
	ctx, cancel := context.WithTimeout(ctx, lockTimeout)
	defer cancel()
	return o.spool.Lock(ctx)
}

// load reads configuration and XML. A domain that is not annotated gives
// annotated false and no error.
func (o *operation) load(ctx context.Context) (source.Result, config.Config, error) {
	c, ps := config.Load(o.Dirs.Config)
	if fatal := ps.Fatal(); len(fatal) > 0 {
		return source.Result{}, c, fatal.WithVM(o.name)
	}
	lockCtx, cancel := context.WithTimeout(ctx, lockTimeout)
	c, err := o.spool.AllocateTables(lockCtx, c)
	cancel()
	r := source.Load(o.xml, c, o.Dirs.Config)
	if fatal := r.Problems.Fatal(); len(fatal) > 0 {
		return r, c, fatal.WithVM(o.name)
	}
	if err != nil && r.Annotated {
		if slices.ContainsFunc(r.VM.NICs, func(n intent.NIC) bool { return n.Network.Table == config.TableAuto }) {
			return r, c, o.failed("cannot set up the network", err)
		}
		o.Log.Warnf("%s starts, but VMs in networks that wait for a table (table: auto) are refused: %v", o.name, err)
	}
	for _, p := range r.Problems {
		o.Log.Warn(p.String())
	}
	return r, c, nil
}

func (o *operation) failed(what string, err error) problem.List {
	return problem.List{{
		Code: problem.EStart, VM: o.name, What: what + ": " + err.Error(),
		Fix: "see the lines of slash32 in the journal (journalctl -u 'slash32*' -u libvirtd)",
	}}
}
