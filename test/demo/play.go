package main

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"syscall"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/test/lab"
)

// hostConfig is /etc/slash32/slash32.yaml. The network "default" needs none.
const hostConfig = `networks:
  seed:
    gateway4: 172.16.0.1
`

// vm is one of the demo's VMs: what virsh metadata sets, and the address that
// its guest is to have.
type vm struct {
	name, annotation, address string
	dhcp6                     bool
}

var (
	web1 = vm{name: "web1", annotation: `<network ipv4="10.42.0.7"/>`, address: "10.42.0.7"}
	web2 = vm{name: "web2", annotation: `<network ipv4="198.51.100.7" ipv6="2001:db8:100::7"/>`, address: "198.51.100.7", dhcp6: true}
	seed = vm{name: "seed", annotation: `<network ipv4="192.168.1.26" network="seed"/>`, address: "192.168.1.26"}
)

const capturePath = "/var/lib/lab/console/capture.log"

func (d *demo) play(ctx context.Context) error {
	var before string
	bridge := lab.DefaultBridge(web1.name)
	steps := []struct {
		name string
		do   func(ctx context.Context) (string, error)
	}{
		{"lab is up: libvirtd, router, internet", d.labUp},
		{"VMs are defined and annotated", d.define},
		{"agent runs", func(ctx context.Context) (detail string, err error) {
			if err = d.lab.StartAgent(ctx); err == nil {
				before, err = d.everything(ctx)
			}
			return "$ slash32d", err
		}},
		{"web1 is started", func(ctx context.Context) (string, error) { return d.virsh(ctx, "start", web1.name) }},
		{"hook is done: bridge and declaration are there", func(ctx context.Context) (string, error) {
			return d.sh(ctx, "ip -br link show group "+strconv.Itoa(marks.LinkGroup), "ls /run/slash32/vm/"+lab.DefaultUUID(web1.name))
		}},
		{"responder is up", d.responder},
		{"web2 and seed are started", func(ctx context.Context) (string, error) {
			var starts errgroup.Group
			for _, v := range []vm{web2, seed} {
				starts.Go(func() error {
					_, err := d.virsh(ctx, "start", v.name)
					return err
				})
			}
			return "", starts.Wait()
		}},
		{"routes, neighbours and nft are in place", func(ctx context.Context) (string, error) {
			if err := d.lab.WaitOnline(ctx, web1.name); err != nil {
				return "", err
			}
			return d.sh(ctx,
				"ip route show proto 32 dev "+bridge,
				"ip neighbour show dev "+bridge,
				"nft list set inet slash32 guard4 | grep -F "+bridge,
				"nft list set inet slash32 masq4 | grep -F "+web1.address)
		}},
		{"DHCP: DISCOVER, OFFER, REQUEST, ACK", d.dhcp},
		{"router advertisement", func(ctx context.Context) (string, error) {
			return d.waitCapture(ctx, regexp.MustCompile(`fe80::1 > \S+: \[icmp6 sum ok\] ICMP6, router advertisement.*`))
		}},
		{"web1 has its /32 and routes", func(ctx context.Context) (string, error) { return d.guest(ctx, web1, "169.254.0.1") }},
		{"web1 pings the internet, masqueraded", d.masquerade},
		{"web2, with routed addresses, answers the internet", d.routed},
		{"live change: an address more", d.liveChange},
		{"status", func(ctx context.Context) (string, error) { return d.sh(ctx, d.bin+"/slash32 status") }},
		{"seed: 192.168.1.26/32 behind 172.16.0.1", func(ctx context.Context) (string, error) { return d.guest(ctx, seed, "172.16.0.1") }},
		{"all VMs are destroyed", d.destroy},
		{"nothing is left", func(ctx context.Context) (string, error) {
			err := lab.Wait(ctx, func() error {
				after, err := d.everything(ctx)
				if err == nil && after != before {
					err = fmt.Errorf("left behind (-before +after):\n%s", cmp.Diff(strings.Split(before, "\n"), strings.Split(after, "\n")))
				}
				return err
			})
			return "links, addresses, routes, rules, neighbours, nft ruleset, files and processes are as before", err
		}},
	}
	for _, s := range steps {
		err := d.step(s.name, func() (string, error) {
			ctx, cancel := context.WithTimeout(ctx, stepLimit)
			defer cancel()
			return s.do(ctx)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) labUp(ctx context.Context) (string, error) {
	l, err := lab.Up(ctx, lab.Options{BinDir: d.bin, Config: hostConfig})
	if err != nil {
		return "", err
	}
	d.lab = l
	return fmt.Sprintf("hypervisor %s, internet host %s without a route to private addresses", lab.Uplink4, lab.Internet4), nil
}

func (d *demo) define(ctx context.Context) (string, error) {
	var echo strings.Builder
	for _, v := range []vm{web1, web2, seed} {
		if err := d.lab.Define(ctx, lab.Domain{Name: v.name, DHCPv6: v.dhcp6}); err != nil {
			return "", err
		}
		out, err := d.virsh(ctx, "metadata", v.name, "--uri", marks.Namespace, "--key", "slash32", "--set", v.annotation, "--config")
		if err != nil {
			return "", err
		}
		echo.WriteString(out)
	}
	return echo.String(), nil
}

func (d *demo) responder(ctx context.Context) (detail string, err error) {
	err = lab.Wait(ctx, func() error {
		v, err := d.lab.Show(ctx, web1.name)
		if err == nil && !v.Responder.Up {
			err = errors.New("the responder of web1 is not up")
		}
		detail = fmt.Sprintf("pid %d of user %s", v.Responder.PID, marks.User)
		return err
	})
	if err != nil {
		return "", err
	}
	// The guest needs seconds to boot: this sees all of its exchanges.
	_, err = d.lab.HV.Start(capturePath, "tcpdump", "-l", "-n", "-tt", "-v", "--immediate-mode", "-i", lab.DefaultBridge(web1.name), "udp port 67 or icmp6")
	return detail, err
}

// dhcp waits for the four messages in the capture and gives the responder's
// times.
func (d *demo) dhcp(ctx context.Context) (string, error) {
	var detail strings.Builder
	message := regexp.MustCompile(`(?s)(\d+\.\d+) IP [^\n]*\n[^\n]*BOOTP/DHCP.*?DHCP-Message \(53\), length 1: (\w+)`)
	want := []string{"Discover", "Offer", "Request", "ACK"}
	err := lab.Wait(ctx, func() error {
		capture, err := d.lab.HV.ReadFile(capturePath)
		if err != nil {
			return err
		}
		detail.Reset()
		var last float64
		found := message.FindAllStringSubmatch(capture, len(want))
		for i, m := range found {
			at, err := strconv.ParseFloat(m[1], 64)
			if err != nil {
				return fmt.Errorf("read tcpdump's time: %w", err)
			}
			if m[2] != want[i] {
				return fmt.Errorf("message %d is %s, want %s", i+1, m[2], want[i])
			}
			if i%2 == 1 {
				fmt.Fprintf(&detail, "%s → %s after %.3f ms\n", want[i-1], want[i], (at-last)*1000)
			}
			last = at
		}
		if len(found) < len(want) {
			return fmt.Errorf("only %d of %v were seen", len(found), want)
		}
		return nil
	})
	return detail.String(), err
}

func (d *demo) waitCapture(ctx context.Context, pattern *regexp.Regexp) (found string, err error) {
	err = lab.Wait(ctx, func() error {
		capture, err := d.lab.HV.ReadFile(capturePath)
		if err != nil {
			return err
		}
		if found = pattern.FindString(capture); found == "" {
			return fmt.Errorf("no %s was seen", pattern)
		}
		return nil
	})
	return found, err
}

// guest shows the guest's address and routes, which must be a /32 and the two
// routes to and by the gateway.
func (d *demo) guest(ctx context.Context, v vm, gateway string) (string, error) {
	console := d.lab.Console(v.name)
	if err := console.WaitFor(ctx, "GUEST bound"); err != nil {
		return "", err
	}
	address, err := console.Run(ctx, "ip -4 -o address show dev eth0 | cut -d' ' -f2-7; ip route show")
	if err != nil {
		return "", err
	}
	for _, want := range []string{"inet " + v.address + "/32", gateway + " dev eth0 scope link", "default via " + gateway + " dev eth0"} {
		if !strings.Contains(address, want) {
			return "", fmt.Errorf("the guest has no %q: %s", want, address)
		}
	}
	return v.name + "# ip address show dev eth0; ip route show\n" + address, nil
}

func (d *demo) masquerade(ctx context.Context) (string, error) {
	const path = "/var/lib/lab/console/inet.log"
	tcpdump, err := d.lab.Inet.Start(path, "tcpdump", "-l", "-n", "-t", "-i", "up0", "--immediate-mode", "icmp")
	if err != nil {
		return "", err
	}
	seen := func(text string) func() error {
		return func() error {
			capture, err := d.lab.HV.ReadFile(path)
			if err == nil && !strings.Contains(capture, text) {
				err = fmt.Errorf("the internet host has not seen %q but: %s", text, capture)
			}
			return err
		}
	}
	if err := lab.Wait(ctx, seen("listening on")); err != nil {
		return "", err
	}
	ping := "ping -c 1 -W 5 " + lab.Internet4
	out, err := d.lab.Console(web1.name).Run(ctx, ping)
	if err != nil {
		return "", err
	}
	request := "IP " + lab.Uplink4 + " > " + lab.Internet4 + ": ICMP echo request"
	if err := lab.Wait(ctx, seen(request)); err != nil {
		return "", err
	}
	if err := tcpdump.Signal(syscall.SIGINT); err != nil {
		return "", err
	}
	answer, _, _ := strings.Cut(out[strings.Index(out, "\n")+1:], "\n")
	return fmt.Sprintf("%s# %s\n%s\nseen by the internet host: %s", web1.name, ping, answer, request), nil
}

func (d *demo) routed(ctx context.Context) (string, error) {
	for _, addr := range []string{"198.51.100.7", "2001:db8:100::7"} {
		if err := d.lab.Inet.Ping(ctx, addr); err != nil {
			return "", err
		}
	}
	return "inet# ping 198.51.100.7: answered\ninet# ping 2001:db8:100::7: answered", nil
}

func (d *demo) liveChange(ctx context.Context) (string, error) {
	const added = "198.51.100.8"
	echo, err := d.virsh(ctx, "metadata", web2.name, "--uri", marks.Namespace, "--key", "slash32", "--live",
		"--set", `<network ipv4="198.51.100.7 198.51.100.8" ipv6="2001:db8:100::7"/>`)
	if err != nil {
		return "", err
	}
	route := "ip route show " + added
	if err := lab.Wait(ctx, func() error {
		out, err := d.lab.HV.Exec(ctx, strings.Fields(route)...)
		if err == nil && out == "" {
			err = errors.New("no route to " + added)
		}
		return err
	}); err != nil {
		return "", err
	}
	shown, err := d.sh(ctx, route)
	if err != nil {
		return "", err
	}
	use := "ip address add " + added + "/32 dev eth0"
	if _, err := d.lab.Console(web2.name).Run(ctx, use); err != nil {
		return "", err
	}
	err = d.lab.Inet.Ping(ctx, added)
	return fmt.Sprintf("%s%s%s# %s\ninet# ping %s: answered", echo, shown, web2.name, use, added), err
}

func (d *demo) destroy(ctx context.Context) (string, error) {
	var echo strings.Builder
	for _, v := range []vm{web1, web2, seed} {
		out, err := d.virsh(ctx, "destroy", v.name)
		if err != nil {
			return "", err
		}
		echo.WriteString(out)
	}
	return echo.String(), nil
}

// everything is what the VMs must leave as it was.
func (d *demo) everything(ctx context.Context) (string, error) {
	state, err := d.lab.HV.KernelState(ctx)
	if err != nil {
		return "", err
	}
	traces, err := d.lab.Traces(ctx)
	return state + traces, err
}

// virsh runs virsh and returns the command as typed, with what it printed.
func (d *demo) virsh(ctx context.Context, args ...string) (string, error) {
	out, err := d.lab.Virsh(ctx, args...)
	for i, a := range args {
		if strings.ContainsAny(a, ` <>"`) {
			args[i] = "'" + a + "'"
		}
	}
	echo := "$ virsh " + strings.Join(args, " ") + "\n"
	if out != "" {
		echo += out + "\n"
	}
	return echo, err
}

// sh runs shell commands on the hypervisor and returns them as typed, each
// with what it printed.
func (d *demo) sh(ctx context.Context, commands ...string) (string, error) {
	var echo strings.Builder
	for _, c := range commands {
		out, err := d.lab.HV.Exec(ctx, "sh", "-c", c)
		if err != nil {
			return "", err
		}
		fmt.Fprintf(&echo, "$ %s\n%s", c, out)
	}
	return echo.String(), nil
}
