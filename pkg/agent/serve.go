package agent

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"
	"golang.org/x/sys/unix"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/state"
	"github.com/slash32/slash32/pkg/traffic"
)

// Exit codes for the command.
const (
	codeNotFound = 3
	codeNotReady = 4
)

// askResponder bounds the answer of one responder.
const askResponder = 200 * time.Millisecond

// serve answers one request on the agent's socket.
func (a *agent) serve(ctx context.Context, r control.Request) control.Reply {
	switch r.Op {
	case "poke":
		a.loop.Poke("hook", false)
		return control.Reply{}
	case "sync":
		if err := a.loop.Sync(ctx); err != nil {
			return control.Reply{Error: err.Error(), Code: 1}
		}
		return control.Reply{}
	case "reload":
		if err := a.reload(); err != nil {
			return control.Reply{Error: err.Error(), Code: 1}
		}
		return control.Reply{}
	case "status":
		s := a.loop.Status()
		if s.Passes == 0 {
			return control.Reply{Error: "the agent has just started and has not looked yet. Fix: ask again in a second", Code: codeNotReady}
		}
		a.fill(ctx, s.VMs)
		return control.Reply{Status: &s}
	case "show", "xml":
		return a.one(ctx, r)
	}
	return control.Reply{Error: fmt.Sprintf("unknown operation %q", r.Op), Code: 1}
}

// one answers for a single VM.
func (a *agent) one(ctx context.Context, r control.Request) control.Reply {
	vms := a.loop.Status().VMs
	i := slices.IndexFunc(vms, func(v control.VM) bool { return matches(v, r.VM) })
	if i < 0 {
		var names []string
		for _, v := range vms {
			names = append(names, v.Name)
		}
		known := "none"
		if len(names) > 0 {
			known = strings.Join(names[:min(len(names), 10)], ", ")
		}
		return control.Reply{Code: codeNotFound, Error: fmt.Sprintf(
			"no running, annotated VM %q; running and annotated: %s. Fix: virsh start it, or annotate it with virsh metadata", r.VM, known)}
	}
	v := vms[i : i+1]
	id, err := uuid.Parse(v[0].UUID)
	if err != nil {
		return control.Reply{Error: err.Error(), Code: 1}
	}
	if r.Op == "xml" {
		xml, _ := a.loop.XML(id)
		return control.Reply{XML: xml}
	}
	a.fill(ctx, v)
	have, err := a.kernel.Read(ctx, state.Scope{Links: bridges(v[0]), Taps: taps(v[0])})
	if err != nil {
		return control.Reply{Error: "read the kernel's state: " + err.Error(), Code: 1}
	}
	v[0].Objects = state.Only(have, bridges(v[0])...).String()
	return control.Reply{VM: &v[0]}
}

func bridges(v control.VM) []string {
	var names []string
	for _, n := range v.NICs {
		names = append(names, n.Bridge)
	}
	return names
}

func taps(v control.VM) []string {
	var names []string
	for _, n := range v.NICs {
		if n.Tap != "" {
			names = append(names, n.Tap)
		}
	}
	return names
}

// matches tells whether a person's word means this VM: its name, UUID, a MAC,
// an address, a bridge or a tap.
func matches(v control.VM, word string) bool {
	if word == "" {
		return false
	}
	if v.Name == word || strings.EqualFold(v.UUID, word) {
		return true
	}
	return slices.ContainsFunc(v.NICs, func(n control.NIC) bool {
		return strings.EqualFold(n.MAC, word) || n.Bridge == word || n.Tap == word ||
			slices.Contains(n.IPv4, word) || slices.Contains(n.IPv6, word)
	})
}

// fill adds what is not part of a pass: counters of guards and responders.
func (a *agent) fill(ctx context.Context, vms []control.VM) {
	spoofed, err := a.kernel.Spoofed(ctx)
	if err != nil {
		a.Log.Warnf("read the guards' counters: %v", err)
	}
	a.meter.Collect(ctx)
	for i := range vms {
		v := &vms[i]
		v.NICs = slices.Clone(v.NICs) // the loop keeps the status that this is a copy of
		for j := range v.NICs {
			s := spoofed[v.NICs[j].Bridge]
			v.NICs[j].Spoofed = control.Spoofed(s)
		}
		id, err := uuid.Parse(v.UUID)
		if err != nil {
			continue
		}
		for j := range v.NICs {
			if m, err := mac.Parse(v.NICs[j].MAC); err == nil {
				v.NICs[j].Traffic = a.meter.Sum(traffic.NIC{UUID: id, MAC: m})
			}
		}
		rctx, cancel := context.WithTimeout(ctx, askResponder)
		v.Responder, err = control.QueryResponder(rctx, a.spool.ResponderSocket(id))
		cancel()
		v.Responder.Up = err == nil
		if err != nil && v.State == "online" {
			v.State, v.Text = "error", "the responder does not answer: "+err.Error()
		}
	}
}

// monotonicUsec is what systemd wants to know with RELOADING=1.
func monotonicUsec() string {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &t); err != nil {
		return "MONOTONIC_USEC=0"
	}
	return fmt.Sprintf("MONOTONIC_USEC=%d", t.Nano()/1000)
}
