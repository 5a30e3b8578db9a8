package e2e

import (
	"fmt"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// TestForward has a private guest that serves a port of the host's: it is reached from
// the internet, the host, another guest and by itself, in both families. What that was
// is counted and outlives the agent; what the guest may not reach on the host is
// counted and logged with its name.
func TestForward(t *testing.T) {
	ctx := scenario(t)
	before := mustEverything(ctx, t)
	const name = "server"
	start(ctx, t, lab.Domain{
		Name: name,
		Metadata: `<slash32:network xmlns:slash32="urn:slash32:domain:1"><slash32:interface>` +
			`<slash32:address ip="10.42.0.20"/><slash32:address ip="fd00:42::20"/><slash32:forward port="8022" to="22"/></slash32:interface></slash32:network>`,
		DHCPv6: true,
	})
	guest := world.Console(name)
	must(t, guest.WaitFor(ctx, "GUEST bound"))
	_, err := guest.Run(ctx, "(nc -ll -p 22 -e hostname </dev/null >/dev/null 2>&1 &)")
	must(t, err)

	const ask = "busybox nc -w 5 %s 8022"
	for _, addr := range []string{lab.Uplink4, lab.Uplink6} {
		ask := fmt.Sprintf(ask, addr)
		for who, run := range map[string]func() (string, error){
			"the internet":  func() (string, error) { return world.Inet.Exec(ctx, "sh", "-c", ask) },
			"the host":      func() (string, error) { return world.HV.Exec(ctx, "sh", "-c", ask) },
			"another guest": func() (string, error) { return world.Console("mail").Run(ctx, ask) },
			"itself":        func() (string, error) { return guest.Run(ctx, ask) },
		} {
			eventually(ctx, t, who+" reaches the port of "+addr, func() error {
				out, err := run()
				if err == nil && strings.TrimSpace(out) != name {
					err = fmt.Errorf("got %q", out)
				}
				return err
			})
		}
	}

	shown := func() control.NIC {
		vm, err := world.Show(ctx, name)
		must(t, err)
		return vm.NICs[0]
	}
	if got := fmt.Sprint(shown().Forwards); got != "[both tcp/8022 to 22]" {
		t.Errorf("show has forwards %s", got)
	}
	counted := shown().Traffic
	if counted.In.Internet.Packets == 0 || counted.Out.Internet.Packets == 0 {
		t.Errorf("counted %+v", counted)
	}
	must(t, world.KillAgent())
	must(t, world.StartAgent(ctx))
	must(t, world.WaitOnline(ctx, name))
	if now := shown().Traffic; now.In.Internet.Packets < counted.In.Internet.Packets || now.Out.Internet.Bytes < counted.Out.Internet.Bytes {
		t.Errorf("counted %+v, and after the agent was killed %+v", counted, now)
	}
	metrics, err := world.Slash32(ctx, "metrics")
	must(t, err)
	if !strings.Contains(metrics, `slash32_traffic_bytes_total{vm="`+name+`"`) {
		t.Errorf("metrics:\n%s", metrics)
	}

	out, err := guest.Run(ctx, "nc -w 2 "+lab.Uplink4+" 22; true")
	must(t, err)
	eventually(ctx, t, "a closed port is counted", func() error {
		if n := shown().Spoofed.Closed; n == 0 {
			return fmt.Errorf("none counted; the guest printed %q", out)
		}
		return nil
	})
	eventually(ctx, t, "a closed port is logged", func() error {
		for _, l := range world.Logs() {
			if strings.Contains(l.Text, "dropped") && strings.Contains(l.Text, "vm="+name) {
				return nil
			}
		}
		return fmt.Errorf("no log has a line about %s", name)
	})
	virsh(ctx, t, "destroy", name)
	back(ctx, t, "nothing is left", before)
}
