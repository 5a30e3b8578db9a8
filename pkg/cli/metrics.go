package cli

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/traffic"
)

// metrics prints what the agent counts in the text format of Prometheus. The few
// lines are made here: its library would be as large as the rest of the command.
func (c *command) metrics(ctx context.Context, _ []string) error {
	reply, err := c.ask(ctx, control.Request{Op: "status"})
	if err != nil {
		return err
	}
	if reply.Status == nil {
		return fail(ExitError, "the agent's reply has no status. Fix: restart it, so that it is of the version of this program")
	}
	return c.print(metricsText(*reply.Status))
}

// family is one metric with its samples, a line each.
type family struct {
	name, kind, help string
	samples          []string
}

func (f *family) add(value uint64, labels ...string) {
	var pairs []string
	for i := 0; i+1 < len(labels); i += 2 {
		pairs = append(pairs, fmt.Sprintf(`%s="%s"`, labels[i], labelValue(labels[i+1])))
	}
	set := ""
	if len(pairs) > 0 {
		set = "{" + strings.Join(pairs, ",") + "}"
	}
	f.samples = append(f.samples, fmt.Sprintf("%s%s %d\n", f.name, set, value))
}

// labelValue escapes what the format gives a meaning to. A name is whoever's who
// may define a domain.
func labelValue(s string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(s, "?"))
}

func metricsText(s control.Status) string {
	up := family{name: "slash32_vm_online", kind: "gauge", help: "Whether the VM is online."}
	bytes := family{name: "slash32_traffic_bytes_total", kind: "counter", help: "Bytes of IP packets forwarded to (in) and from (out) a NIC, over all starts of the VM on this host."}
	packets := family{name: "slash32_traffic_packets_total", kind: "counter", help: "The same in packets."}
	dropped := family{name: "slash32_guard_dropped_total", kind: "counter", help: "Packets of a guest that its guard dropped, since the VM's start."}
	fragments := family{name: "slash32_guard_fragments_total", kind: "counter", help: "Fragments that a guest sent, not dropped, since the VM's start."}
	responder := family{name: "slash32_responder_frames_total", kind: "counter", help: "Frames that a VM's responder saw, since its start."}
	for _, v := range s.VMs {
		online := uint64(0)
		if v.State == "online" {
			online = 1
		}
		up.add(online, "vm", v.Name, "uuid", v.UUID)
		for _, n := range v.NICs {
			nic := []string{"vm", v.Name, "uuid", v.UUID, "mac", n.MAC}
			with := func(more ...string) []string { return slices.Concat(nic, more) }
			for _, x := range []struct {
				direction, class string
				traffic.Count
			}{
				{"in", "internet", n.Traffic.In.Internet}, {"in", "local", n.Traffic.In.Local},
				{"out", "internet", n.Traffic.Out.Internet}, {"out", "local", n.Traffic.Out.Local},
			} {
				bytes.add(x.Bytes, with("direction", x.direction, "class", x.class)...)
				packets.add(x.Packets, with("direction", x.direction, "class", x.class)...)
			}
			reasons := n.Spoofed.Reasons()
			for _, reason := range slices.Sorted(maps.Keys(reasons)) {
				dropped.add(reasons[reason], with("reason", reason)...)
			}
			fragments.add(n.Spoofed.Fragments, nic...)
			for _, r := range v.Responder.NICs {
				if r.Bridge != n.Bridge {
					continue
				}
				for _, verdict := range slices.Sorted(maps.Keys(r.Verdicts)) {
					responder.add(r.Verdicts[verdict], with("verdict", verdict)...)
				}
			}
		}
	}
	passes := family{name: "slash32_agent_passes_total", kind: "counter", help: "Times that the agent has compared the host with what it should be."}
	passes.add(s.Passes)
	writes := family{name: "slash32_agent_kernel_writes_total", kind: "counter", help: "Kernel objects that the agent has written."}
	writes.add(s.Writes)
	degraded := family{name: "slash32_agent_degraded", kind: "gauge", help: "Whether libvirt's list is unknown, so that nothing is removed."}
	if s.Degraded != "" {
		degraded.add(1)
	} else {
		degraded.add(0)
	}
	var b strings.Builder
	for _, f := range []family{up, bytes, packets, dropped, fragments, responder, passes, writes, degraded} {
		if len(f.samples) == 0 {
			continue
		}
		fmt.Fprintf(&b, "# HELP %s %s\n# TYPE %[1]s %[3]s\n%[4]s", f.name, f.help, f.kind, strings.Join(f.samples, ""))
	}
	return b.String()
}
