package cli

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/traffic"
)

func (c *command) status(ctx context.Context, _ []string) error {
	reply, err := c.ask(ctx, control.Request{Op: "status"})
	if err != nil {
		return err
	}
	if reply.Status == nil {
		return fail(ExitError, "the agent's reply has no status. Fix: restart it, so that it is of the version of this program")
	}
	if c.json {
		return c.printJSON(reply.Status)
	}
	return c.print(c.statusText(*reply.Status))
}

func (c *command) statusText(s control.Status) string {
	var b strings.Builder
	online := 0
	for _, v := range s.VMs {
		if v.State == "online" {
			online++
		}
	}
	fmt.Fprintf(&b, "host %s, agent %s up %s, uplink %s, %d of %d online\n", oneLine(s.Host), oneLine(s.Version), c.ago(s.Since), uplink(s), online, len(s.VMs))
	if s.Degraded != "" {
		since := ""
		if s.DegradedSince != nil {
			since = " for " + c.ago(*s.DegradedSince)
		}
		fmt.Fprintf(&b, "DEGRADED%s: %s\n", since, oneLine(s.Degraded))
	}
	if s.LastError != "" {
		fmt.Fprintf(&b, "last error: %s\n", oneLine(s.LastError))
	}
	for _, p := range s.Pools {
		fmt.Fprintln(&b, oneLine(p))
	}
	for _, w := range s.Warnings {
		fmt.Fprintln(&b, oneLine(w))
	}
	if len(s.VMs) == 0 {
		b.WriteString("\nno annotated VM runs\n")
		return b.String()
	}
	b.WriteByte('\n')
	w := tabwriter.NewWriter(&b, 0, 0, 2, ' ', 0)
	row := func(cells ...string) {
		for i, cell := range cells {
			cells[i] = cmp.Or(oneLine(cell), "-")
		}
		fmt.Fprintln(w, strings.Join(cells, "\t"))
	}
	row("VM", "STATE", "ADDRESSES", "BRIDGE", "UPLINK", "NAT", "SPOOFED", "RESPONDER")
	for _, v := range s.VMs {
		up := "down"
		if v.Responder.Up {
			up = "up"
		}
		if len(v.NICs) == 0 {
			row(v.Name, v.State, "", "", "", "", "", up)
		}
		for _, n := range v.NICs {
			row(v.Name, v.State, addresses(n), n.Bridge, n.Uplink, n.NAT, fmt.Sprint(spoofed(n.Spoofed)), up)
		}
	}
	_ = w.Flush() // to a strings.Builder
	var notes []string
	for _, v := range s.VMs {
		if v.Text != "" {
			notes = append(notes, fmt.Sprintf("%s %s: %s", oneLine(v.Name), oneLine(v.State), oneLine(strings.TrimPrefix(v.Text, v.Name+": "))))
		}
		for _, p := range v.Problems {
			if p != v.Text {
				notes = append(notes, oneLine(p))
			}
		}
	}
	if len(notes) > 0 {
		b.WriteString("\n" + strings.Join(notes, "\n") + "\n")
	}
	return b.String()
}

// spoofed is how many packets were dropped for what the guest claimed in them.
func spoofed(s control.Spoofed) (n uint64) {
	for reason, count := range s.Reasons() {
		if reason != "closed" && reason != "apart" {
			n += count
		}
	}
	return n
}

func spoofedText(s control.Spoofed) string {
	return fmt.Sprintf("%d IPv4, %d IPv6, %d MAC, %d ARP, %d ND, %d as a router, %d redirects, %d as a DHCP server",
		s.IPv4, s.IPv6, s.MAC, s.ARP, s.ND, s.RA, s.Redirect, s.Rogue)
}

func classesText(c traffic.Classes) string {
	return fmt.Sprintf("%d bytes, %d packets internet; %d bytes, %d packets local",
		c.Internet.Bytes, c.Internet.Packets, c.Local.Bytes, c.Local.Packets)
}

func uplink(s control.Status) string {
	switch {
	case s.Uplink4 == s.Uplink6:
		return cmp.Or(oneLine(s.Uplink4), "none")
	case s.Uplink6 == "":
		return oneLine(s.Uplink4) + " (IPv4 only)"
	case s.Uplink4 == "":
		return oneLine(s.Uplink6) + " (IPv6 only)"
	}
	return oneLine(s.Uplink4) + " (IPv4), " + oneLine(s.Uplink6) + " (IPv6)"
}

// addresses is a NIC's addresses, the first of each family and how many more.
func addresses(n control.NIC) string {
	var s []string
	more := 0
	for _, family := range [][]string{n.IPv4, n.IPv6} {
		if len(family) > 0 {
			s = append(s, family[0])
			more += len(family) - 1
		}
	}
	if more > 0 {
		s = append(s, fmt.Sprintf("+%d", more))
	}
	return strings.Join(s, " ")
}

// ago is how long t is past.
func (c *command) ago(t time.Time) string {
	if t.IsZero() {
		return "?"
	}
	return until(c.Now().Sub(t))
}

// until is a duration in one or two units.
func until(d time.Duration) string {
	d = max(0, d)
	switch {
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%dm", int(d.Hours()), int(d.Minutes())%60)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

func (c *command) show(ctx context.Context, args []string) error {
	reply, err := c.ask(ctx, control.Request{Op: "show", VM: args[0]})
	if err != nil {
		return err
	}
	if reply.VM == nil {
		return fail(ExitError, "the agent's reply has no VM. Fix: restart it, so that it is of the version of this program")
	}
	if c.json {
		return c.printJSON(reply.VM)
	}
	return c.print(c.showText(*reply.VM))
}

// clientText is what kind of lease the guest gets, why, and who it is.
func clientText(c control.Client) string {
	s := c.Profile
	if !c.Forced {
		s += map[string]string{"routed": " (auto: it asks for option 121)", "classic": " (auto: it does not ask for option 121)"}[c.Profile]
	}
	if c.Lease != "" {
		s += ", " + c.Lease
	}
	if c.Vendor != "" {
		s += ", " + strconv.Quote(c.Vendor)
	}
	if c.Firmware {
		s += ", firmware"
	}
	if c.Booted {
		s += ", has booted from the network"
	}
	return s
}

func (c *command) showText(v control.VM) string {
	var b strings.Builder
	line := func(name, format string, args ...any) {
		fmt.Fprintf(&b, "%-12s%s\n", name, oneLine(fmt.Sprintf(format, args...)))
	}
	line("name", "%s", v.Name)
	line("uuid", "%s", v.UUID)
	state := v.State + " for " + c.ago(v.Since)
	if v.Text != "" {
		state += ": " + v.Text
	}
	line("state", "%s", state)
	if r := v.Responder; r.Up {
		line("responder", "up for %s, pid %d, version %s", c.ago(r.Since), r.PID, cmp.Or(r.Version, "?"))
	} else {
		line("responder", "down")
	}
	for _, p := range v.Problems {
		line("problem", "%s", p)
	}
	for _, n := range v.NICs {
		b.WriteByte('\n')
		line("nic", "%s", n.MAC)
		line("  bridge", "%s", n.Bridge)
		if n.Tap != "" {
			line("  tap", "%s", n.Tap)
		}
		line("  network", "%s", n.Network)
		for _, a := range n.IPv4 {
			line("  ipv4", "%s/32", a)
		}
		for _, a := range n.IPv6 {
			line("  ipv6", "%s/128", a)
		}
		for _, a := range n.Deprecated {
			line("  ipv6", "%s/128, deprecated: on its way out", a)
		}
		for _, p := range n.Prefixes {
			state := ""
			if p.Deprecated {
				state = ", deprecated: on its way out"
			}
			line("  prefix", "%s, %s%s", p.Net, p.Mode, state)
		}
		for _, d := range n.Delegated {
			line("  delegated", "%s via %s, ends in %s", d.Prefix, d.Via, until(d.Expires.Sub(c.Now())))
		}
		if len(n.Relay) > 0 {
			line("  relay", "to %s", strings.Join(n.Relay, ", "))
		}
		for _, l := range n.Leases {
			server := ""
			if l.Server != "" {
				server = ", by " + l.Server
			}
			line("  lease", "%s, ends in %s%s", l.Addr, until(l.Expires.Sub(c.Now())), server)
		}
		nat := n.NAT
		if n.Uplink != "" {
			nat += " by " + n.Uplink
		}
		line("  nat", "%s", nat)
		for _, f := range n.Forwards {
			line("  forward", "%s", f)
		}
		line("  spoofed", "%s", spoofedText(n.Spoofed))
		line("  closed", "%d to the host's services; %d fragments, not dropped", n.Spoofed.Closed, n.Spoofed.Fragments)
		if n.Spoofed.Apart > 0 {
			line("  apart", "%d from it to others and from them to it: its network is isolated", n.Spoofed.Apart)
		}
		line("  in", "%s", classesText(n.Traffic.In))
		line("  out", "%s", classesText(n.Traffic.Out))
		for _, r := range v.Responder.NICs {
			if r.Bridge == n.Bridge {
				if r.Client != nil {
					line("  client", "%s", clientText(*r.Client))
				}
				for _, d := range r.Delegated {
					line("  delegated", "%s via %s, ends in %s", d.Prefix, d.Via, until(d.Expires.Sub(c.Now())))
				}
				for _, name := range slices.Sorted(maps.Keys(r.Verdicts)) {
					line("  frames", "%d %s", r.Verdicts[name], name)
				}
				for _, x := range r.Last {
					line("  last", "%s ago %s", c.ago(x.At), x.Verdict)
				}
			}
		}
	}
	if v.Objects != "" {
		b.WriteString("\nkernel\n")
		for l := range strings.Lines(v.Objects) {
			b.WriteString("  " + oneLine(strings.TrimSuffix(l, "\n")) + "\n")
		}
	}
	return b.String()
}
