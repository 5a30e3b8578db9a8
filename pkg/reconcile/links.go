package reconcile

import (
	"context"
	"fmt"

	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// tap is the interface that libvirt has made for a NIC, "" when that is not known.
// While a VM starts it is libvirt's to put into the bridge.
func (v *vm) tap(m mac.Addr) string {
	if v.declared && v.decl.Phase == spool.Preparing {
		return ""
	}
	return v.taps[m]
}

// warnTaps finds taps that somebody has put elsewhere: they stay there.
func (p *pass) warnTaps(have state.State) {
	for _, v := range p.vms {
		if !v.planned {
			continue
		}
		for _, n := range v.intent.NICs {
			if at := have.Taps[n.Tap]; at != "" && at != n.Bridge {
				v.problems = append(v.problems, problem.Problem{
					Code: problem.WTap, VM: v.intent.Name, What: fmt.Sprintf("its tap %s is in %s and not in its bridge %s, so it is offline", n.Tap, at, n.Bridge),
					Fix: fmt.Sprintf("ip link set %s master %s", n.Tap, n.Bridge),
				})
			}
		}
	}
}

// warnClosed finds servers that guests are told of and do not reach.
func (p *pass) warnClosed() {
	for _, v := range p.vms {
		if v.planned {
			v.problems = append(v.problems, p.facts.Closed(v.intent)...)
		}
	}
}

// warnShadowed finds programs of the host whose ports are forwarded to VMs. It asks
// only where a port is.
func (p *pass) warnShadowed(ctx context.Context) {
	var listeners []intent.Listener
	asked := false
	for _, v := range p.vms {
		if !v.planned || len(v.intent.Ports()) == 0 {
			continue
		}
		if !asked {
			asked = true
			var err error
			if listeners, err = p.Kernel.Listeners(ctx); err != nil {
				p.bad = append(p.bad, err)
				return
			}
		}
		v.problems = append(v.problems, intent.Shadowed(v.intent, listeners)...)
	}
}
