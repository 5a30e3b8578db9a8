package reconcile

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/kernel"
	"github.com/slash32/slash32/pkg/problem"
	"github.com/slash32/slash32/pkg/spool"
	"github.com/slash32/slash32/pkg/state"
)

// Repairs within fightWindow that come to fightCount are a fight with another
// program: one line says so, at most once a window.
const (
	fightCount  = 5
	fightWindow = time.Minute
)

// note logs what a pass did and keeps what status shows.
func (l *Loop) note(p *pass, reasons []string, err error) {
	l.noteProblems(p)
	if p.writes > 0 {
		l.Log.WithField("why", strings.Join(reasons, ", ")).Infof("%d kernel writes: %s", p.writes, summary(p.changes))
	}
	l.noteRepairs(p, reasons)

	l.mu.Lock()
	defer l.mu.Unlock()
	s := &l.status
	s.Passes++
	s.Writes += uint64(p.writes)
	if l.first {
		s.FirstPassWrites = uint64(p.writes)
		l.first = false
	}
	s.LastError = ""
	if err != nil {
		s.LastError = err.Error()
	}
	s.Degraded, s.DegradedSince = "", nil
	if l.listed.err != nil {
		since := l.listed.errAt
		s.Degraded, s.DegradedSince = "libvirt's list is not known: "+l.listed.err.Error(), &since
	}
	s.Uplink4, s.Uplink6 = p.facts.Uplink4, p.facts.Uplink6
	s.Pools, s.Warnings = nil, nil
	for _, name := range slices.Sorted(maps.Keys(l.bases)) {
		if l.bases[name] != "" {
			s.Pools = append(s.Pools, l.bases[name])
		}
	}
	for _, w := range p.warnings {
		s.Warnings = append(s.Warnings, w.String())
	}
	s.VMs = p.status()
	l.xml = map[uuid.UUID]string{}
	for id, v := range p.vms {
		l.xml[id] = cmp.Or(v.domain.XML, v.decl.XML)
	}
}

// noteProblems logs each problem when it appears, not in each pass: a guest can
// cause as many passes as it likes.
func (l *Loop) noteProblems(p *pass) {
	now := map[string]struct{}{}
	note := func(line string, say func(...any)) {
		if _, old := l.warned[line]; !old {
			say(line)
		}
		now[line] = struct{}{}
	}
	add := func(line string) { note(line, l.Log.Warn) }
	for _, bad := range p.bad {
		note(bad.Error(), l.Log.Error)
	}
	for _, v := range p.vms {
		for _, pr := range v.problems {
			add(pr.String())
		}
		for _, line := range v.decl.Warnings { // libvirt keeps what its hooks print to itself
			add(line)
		}
	}
	for _, w := range p.warnings {
		add(w.String())
	}
	l.warned = now
}

// noteRepairs counts passes that changed the kernel though what is wanted had
// not changed.
func (l *Loop) noteRepairs(p *pass, reasons []string) {
	var writers []kernel.Writer
	if l.Writers != nil {
		writers = l.Writers()
	}
	if p.writes == 0 || !p.repair {
		return
	}
	now := l.Now()
	l.repairs = slices.DeleteFunc(l.repairs, func(t time.Time) bool { return now.Sub(t) > fightWindow })
	if len(l.repairs) == 0 {
		l.culprits = nil
	}
	l.repairs = append(l.repairs, now)
	l.culprits = append(l.culprits, writers...)
	if n := len(l.culprits) - maxCulprits; n > 0 {
		l.culprits = l.culprits[n:]
	}
	if len(l.repairs) == fightCount {
		l.Log.Warnf("%s keeps changing what slash32 set up: %d repairs in %v, the last one after %s: %s. Fix: %skeep it from objects of protocol 32 and table inet slash32",
			blamed(l.culprits), fightCount, fightWindow, strings.Join(reasons, ", "), summary(p.changes), search(l.culprits))
	}
	if len(l.repairs) > fightCount {
		l.repairs = l.repairs[1:]
	}
}

// maxCulprits bounds what is kept of who changed the table.
const maxCulprits = 64

// blamed names the programs that changed the table, the busiest first, each with the
// process that did it last.
func blamed(ws []kernel.Writer) string {
	count, last := map[string]int{}, map[string]int{}
	for _, w := range ws {
		count[w.Program]++
		last[w.Program] = w.PID
	}
	names := slices.SortedFunc(maps.Keys(count), func(a, b string) int { return cmp.Or(count[b]-count[a], cmp.Compare(a, b)) })
	var words []string
	for _, n := range names[:min(len(names), 3)] {
		words = append(words, fmt.Sprintf("%s (last as process %d)", problem.Quote(n), last[n]))
	}
	return cmp.Or(strings.Join(words, ", "), "another program")
}

// search is how to find who the kernel does not name.
func search(ws []kernel.Writer) string {
	if len(ws) > 0 {
		return ""
	}
	return "find it (ip monitor, nft monitor) and "
}

// warn finds what keeps VMs offline though everything of ours is in place.
func (p *pass) warn(have state.State) {
	if p.Neighbours != nil {
		p.warnings = append(p.warnings, p.Neighbours()...)
	}
	masquerade := false
	for _, v := range p.vms {
		for _, n := range v.intent.NICs {
			masquerade = masquerade || n.NAT != config.NATNone && n.Network.Uplink == "auto"
		}
	}
	if masquerade && p.facts.Uplink4 == "" && p.facts.Uplink6 == "" {
		p.warnings = append(p.warnings, problem.Problem{
			Code: problem.WUplink, What: "the host has no default route, so there is no uplink to masquerade to",
			Fix: "add a default route, or name the uplink in " + p.Spool.Config + "/slash32.yaml",
		})
	}
	if p.config.Forwarding == "check" && len(p.vms) > 0 {
		for _, path := range forwardingPaths {
			if have.Sysctls[path] == "0" {
				p.warnings = append(p.warnings, problem.Problem{
					Code: problem.WForwarding, What: path + " is 0, so VMs reach nothing beyond this host, and the configuration says forwarding: check",
					Fix: "sysctl -w " + strings.ReplaceAll(path, "/", ".") + "=1, or set forwarding: manage",
				})
			}
		}
	}
}

var forwardingPaths = [...]string{"net/ipv4/ip_forward", "net/ipv6/conf/all/forwarding"}

// summary is at most three changes, and how many more.
func summary(cs []state.Change) string {
	const shown = 3
	var s []string
	for _, c := range cs[:min(len(cs), shown)] {
		s = append(s, c.String())
	}
	if len(cs) > shown {
		s = append(s, fmt.Sprintf("and %d more", len(cs)-shown))
	}
	return strings.Join(s, "; ")
}

// status is the VMs as the pass saw them.
func (p *pass) status() []control.VM {
	vms := []control.VM{}
	for id, v := range p.vms {
		c := control.VM{UUID: id.String(), Name: v.intent.Name, State: "online", Since: p.since[id]}
		for _, pr := range v.problems {
			c.Problems = append(c.Problems, pr.String())
		}
		c.Problems = append(c.Problems, v.decl.Warnings...)
		switch {
		case !v.planned:
			c.State, c.Text = "error", firstOf(c.Problems)
		case v.declared && v.decl.Phase == spool.Preparing:
			c.State, c.Text = "starting", "libvirt has not said yet that the guest runs"
		}
		for _, n := range v.intent.NICs {
			c.NICs = append(c.NICs, p.nic(v, n))
		}
		vms = append(vms, c)
	}
	for _, d := range p.gone {
		if _, listed := p.listed.domains[d.UUID]; d.Phase == spool.Stopped && listed {
			vms = append(vms, control.VM{UUID: d.UUID.String(), Name: d.Name, State: "stopping", Since: d.At})
		}
	}
	slices.SortFunc(vms, func(a, b control.VM) int { return cmp.Or(cmp.Compare(a.Name, b.Name), cmp.Compare(a.UUID, b.UUID)) })
	return vms
}

func (p *pass) nic(v *vm, n intent.NIC) control.NIC {
	c := control.NIC{
		MAC: n.MAC.String(), Bridge: n.Bridge, Network: n.Network.Name, NAT: n.Translation(),
		Tap: v.taps[n.MAC],
	}
	c.Forwards = n.Ports()
	if n.NAT != config.NATNone || len(n.Public) > 0 {
		c.Uplink = n.Network.Uplink
		if c.Uplink == "auto" {
			c.Uplink = cmp.Or(p.facts.Uplink4, p.facts.Uplink6)
		}
	}
	for _, a := range n.Addrs() {
		switch {
		case a.Is4():
			c.IPv4 = append(c.IPv4, a.String())
		case slices.Contains(n.Old6, a):
			c.Deprecated = append(c.Deprecated, a.String())
		default:
			c.IPv6 = append(c.IPv6, a.String())
		}
	}
	for _, s := range n.Relay.Servers {
		c.Relay = append(c.Relay, s.String())
	}
	for _, l := range v.leases[n.MAC] {
		c.Leases = append(c.Leases, l.control())
	}
	for _, x := range n.Prefixes {
		if x.Net.IsValid() {
			c.Prefixes = append(c.Prefixes, control.Prefix{Net: x.Net.String(), Mode: x.Mode, Deprecated: x.Deprecated})
		}
	}
	for _, d := range v.delegated[n.MAC] {
		c.Delegated = append(c.Delegated, d.control())
	}
	return c
}

func firstOf(s []string) string {
	if len(s) == 0 {
		return ""
	}
	return s[0]
}

// XML is the newest XML that the loop has of a VM. It is safe while Run runs.
func (l *Loop) XML(id uuid.UUID) (string, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	x, ok := l.xml[id]
	return x, ok
}

// OnBridge is the name of the VM on a bridge, "" when there is none. It is safe
// while Run runs.
func (l *Loop) OnBridge(bridge string) string {
	l.mu.Lock()
	defer l.mu.Unlock()
	for _, v := range l.status.VMs {
		if slices.ContainsFunc(v.NICs, func(n control.NIC) bool { return n.Bridge == bridge }) {
			return v.Name
		}
	}
	return ""
}
