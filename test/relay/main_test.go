// Package relay tests guests that are relayed to DHCP servers: two hypervisors
// with real guests, a failover pair of ISC dhcpd and one Kea, all at once.
package relay

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/slash32/slash32/test/lab"
)

// The servers' addresses. Each of the pair has two and is asked at both, so that it
// answers twice.
const (
	primary    = "10.9.0.11"
	primary2   = "10.9.0.21"
	secondary  = "10.9.0.12"
	secondary2 = "10.9.0.22"
	kea        = "10.9.0.13"
	kea6       = "fd09::13"
	single     = "10.9.0.14" // an ISC dhcpd of its own that honours server-id-override
)

// inSubnet is an address of the first hypervisor that is in a subnet of kea's and
// single's.
const inSubnet = "10.22.0.1"

// giaddr of each hypervisor: the first has the address of the route to the
// servers, the second one that its configuration names.
var giaddrs = [2]string{"192.0.2.2", "10.9.2.1"}

const config = `
networks:
  isc:
    relay: {servers: [10.9.0.11, 10.9.0.12, 10.9.0.21, 10.9.0.22], link4: 10.20.0.0%s}
  kea:
    relay: {servers: [10.9.0.13, "fd09::13"], link4: 10.21.0.0, link6: "2001:db8:21::"%[1]s}
  giaddr:
    relay: {servers: [10.9.0.13], source4: 10.22.0.1}
  override:
    relay: {servers: [10.9.0.14], source4: 10.22.0.1}
`

var (
	hosts   [2]*lab.Lab
	servers map[string]*server
)

// server is a DHCP server on a node of the first lab.
type server struct {
	node    *lab.Node
	process *lab.Process
	log     string
}

func TestMain(m *testing.M) { os.Exit(run(m)) }

func run(m *testing.M) int {
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	defer func() {
		for _, h := range hosts {
			if h != nil {
				_ = h.Close()
			}
		}
	}()
	if err := makeWorld(ctx); err != nil {
		fmt.Fprintf(os.Stderr, "FAIL: no lab to test in: %v\n", err)
		return 1
	}
	return m.Run()
}

func makeWorld(ctx context.Context) error {
	bin, err := filepath.Abs("../../bin")
	if err != nil {
		return err
	}
	if _, err := os.Stat(filepath.Join(bin, "slash32d")); err != nil {
		return fmt.Errorf("find what is to be tested: %w. Fix: make build", err)
	}
	var g errgroup.Group
	for i := range hosts {
		g.Go(func() error {
			source := ""
			if i == 1 {
				source = ", source4: " + giaddrs[1]
			}
			hosts[i], err = lab.Up(ctx, lab.Options{BinDir: bin, Config: fmt.Sprintf(config, source)})
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return err
	}
	if err := connect(ctx); err != nil {
		return err
	}
	if err := startServers(ctx); err != nil {
		return err
	}
	for _, h := range hosts {
		if err := h.StartAgent(ctx); err != nil {
			return err
		}
	}
	return nil
}

func each(ctx context.Context, n *lab.Node, lines ...string) error {
	for _, line := range lines {
		if _, err := n.Exec(ctx, strings.Fields(line)...); err != nil {
			return err
		}
	}
	return nil
}

// connect makes the servers' network, 10.9.0.0/24 on the first lab's router, and
// a link to the second lab's router:
//
//	hv1 192.0.2.2 ── rtr1 ── srv 10.9.0.1/24 ── s1, s2, s3, s4
//	                  │ 10.9.1.0/30
//	hv2 10.9.2.1 ─── rtr2
func connect(ctx context.Context) error {
	a, b := hosts[0], hosts[1]
	if err := each(ctx, a.Router,
		"ip link add srv type bridge forward_delay 0 mcast_snooping 0", "ip link set srv up", "ip address add 10.9.0.1/24 dev srv",
		"ip -6 address add fd09::1/64 dev srv nodad"); err != nil {
		return err
	}
	// A process to name the second router's namespace by.
	anchor, err := b.Router.Start("/var/log/anchor.log", "sleep", "infinity")
	if err != nil {
		return err
	}
	pid := 0
	if err := lab.Wait(ctx, func() error {
		if pid, err = anchor.PID(); err == nil && pid == 0 {
			err = errors.New("it does not run yet")
		}
		return err
	}); err != nil {
		return err
	}
	if err := linkTo(ctx, a.Router, "to2", "to1", pid); err != nil {
		return err
	}
	if err := each(ctx, a.Router, "ip address add 10.9.1.1/30 dev to2", "ip link set to2 up", "ip route add 10.9.2.0/24 via 10.9.1.2",
		"ip -6 address add fd09:1::1/64 dev to2 nodad", "ip -6 route add fd09:2::/64 via fd09:1::2"); err != nil {
		return err
	}
	if err := each(ctx, b.Router, "ip address add 10.9.1.2/30 dev to1", "ip link set to1 up", "ip route add 10.9.0.0/24 via 10.9.1.1",
		"ip route add 10.9.2.1 via 192.0.2.2",
		"ip -6 address add fd09:1::2/64 dev to1 nodad", "ip -6 route add fd09::/64 via fd09:1::1", "ip -6 route add fd09:2::1 via 2001:db8:0:1::2"); err != nil {
		return err
	}
	if err := each(ctx, b.HV, "ip address add 10.9.2.1/32 dev lo", "ip -6 address add fd09:2::1/128 dev lo nodad",
		"ip -6 route add fd09::/64 via 2001:db8:0:1::1 src fd09:2::1"); err != nil {
		return err
	}
	if err := each(ctx, a.HV, "ip address add "+inSubnet+"/32 dev lo"); err != nil {
		return err
	}
	if err := each(ctx, a.Router, "ip route add "+inSubnet+" via 192.0.2.2"); err != nil {
		return err
	}
	for i, name := range []string{"s1", "s2", "s3", "s4"} {
		if _, err := a.AddNode(ctx, name); err != nil {
			return err
		}
		if err := each(ctx, a.HV, fmt.Sprintf("ip -n rtr link add x%s type veth peer name eth0 netns %[1]s", name),
			fmt.Sprintf("ip -n rtr link set x%s master srv up", name),
			fmt.Sprintf("ip -n %s address add 10.9.0.1%d/24 dev eth0", name, i+1),
			fmt.Sprintf("ip -n %s -6 address add fd09::1%d/64 dev eth0 nodad", name, i+1),
			fmt.Sprintf("ip -n %s link set eth0 up", name),
			fmt.Sprintf("ip -n %s route add default via 10.9.0.1", name),
			fmt.Sprintf("ip -n %s -6 route add default via fd09::1", name)); err != nil {
			return err
		}
	}
	return each(ctx, a.HV, "ip -n s1 address add "+primary2+"/24 dev eth0", "ip -n s2 address add "+secondary2+"/24 dev eth0")
}

// linkTo makes a pair of interfaces, the second one in the namespace of a process
// of another lab.
func linkTo(ctx context.Context, n *lab.Node, here, there string, pid int) error {
	if _, err := n.Exec(ctx, "ip", "link", "add", here, "type", "veth", "peer", "name", there); err != nil {
		return err
	}
	// The process's number is one outside of both labs.
	return n.Give(ctx, there, pid)
}

const iscCommon = `
default-lease-time 40; max-lease-time 40; min-lease-time 4;
authoritative; ping-check false;
subnet 10.9.0.0 netmask 255.255.255.0 { }
subnet 10.20.0.0 netmask 255.255.255.0 {
  option routers 10.20.0.1;
  option domain-name-servers 9.9.9.9;
  pool { failover peer "fo"; range 10.20.0.100 10.20.0.149; }
}
`

const iscPeer = `
failover peer "fo" { %s; address %s; port 647; peer address %s; peer port 647;
  max-response-delay 2; max-unacked-updates 10; load balance max seconds 1; auto-partner-down 1;%s }
`

// iscSingle is not authoritative: what another server leases is no business of its.
// It leases each NIC two addresses at most.
const iscSingle = `
default-lease-time 60; max-lease-time 60; min-lease-time 4;
not authoritative; ping-check false;
option agent.server-id-override code 11 = ip-address;
class "vm" { spawn with option agent.circuit-id; lease limit 2; }
if exists agent.server-id-override { option dhcp-server-identifier = option agent.server-id-override; }
subnet 10.9.0.0 netmask 255.255.255.0 { }
subnet 10.22.0.0 netmask 255.255.255.0 { option routers 10.22.0.254; range 10.22.0.200 10.22.0.249; }
`

const keaConfig4 = `{ "Dhcp4": { "interfaces-config": { "interfaces": ["eth0"], "dhcp-socket-type": "udp" },
 "lease-database": { "type": "memfile", "persist": false, "lfc-interval": 0 },
 "valid-lifetime": 120, "renew-timer": 4, "rebind-timer": 12, "calculate-tee-times": false,
 "subnet4": [ { "id": 21, "subnet": "10.21.0.0/24", "pools": [ { "pool": "10.21.0.100-10.21.0.149" } ],
   "option-data": [ { "name": "routers", "data": "10.21.0.1" } ] },
  { "id": 22, "subnet": "10.22.0.0/24", "pools": [ { "pool": "10.22.0.100-10.22.0.149" } ],
   "option-data": [ { "name": "routers", "data": "10.22.0.254" } ] } ] } }`

const keaConfig6 = `{ "Dhcp6": { "interfaces-config": { "interfaces": ["eth0/fd09::13"] },
 "server-id": { "type": "EN", "enterprise-id": 2495, "identifier": "0123456789", "persist": false },
 "lease-database": { "type": "memfile", "persist": false, "lfc-interval": 0 },
 "valid-lifetime": 30, "preferred-lifetime": 24, "renew-timer": 6, "rebind-timer": 12,
 "subnet6": [ { "id": 1, "subnet": "2001:db8:21::/64", "pools": [ { "pool": "2001:db8:21::1000-2001:db8:21::1fff" } ],
   "pd-pools": [ { "prefix": "2001:db8:f000::", "prefix-len": 44, "delegated-len": 56 } ] } ] } }`

func startServers(ctx context.Context) error {
	a := hosts[0]
	servers = map[string]*server{}
	files := map[string]string{
		"/etc/dhcp-s1.conf": fmt.Sprintf(iscPeer, "primary", primary, secondary, " mclt 24; split 128;") + iscCommon,
		"/etc/dhcp-s2.conf": fmt.Sprintf(iscPeer, "secondary", secondary, primary, "") + iscCommon,
		"/etc/dhcp-s4.conf": iscSingle,
		"/var/s1.leases":    "", "/var/s2.leases": "", "/var/s4.leases": "",
		"/etc/kea4.json": keaConfig4, "/etc/kea6.json": keaConfig6,
	}
	for path, text := range files {
		if err := a.HV.WriteFile(path, text, 0o644); err != nil {
			return err
		}
	}
	const environment = "KEA_PIDFILE_DIR=/run/lab KEA_LOCKFILE_DIR=/run/lab"
	for name, command := range map[string]string{
		"s1":   "dhcpd -4 -d -cf /etc/dhcp-s1.conf -lf /var/s1.leases -pf /run/s1.pid --no-pid eth0",
		"s2":   "dhcpd -4 -d -cf /etc/dhcp-s2.conf -lf /var/s2.leases -pf /run/s2.pid --no-pid eth0",
		"s4":   "dhcpd -4 -d -cf /etc/dhcp-s4.conf -lf /var/s4.leases -pf /run/s4.pid --no-pid eth0",
		"kea4": "env " + environment + " kea-dhcp4 -c /etc/kea4.json",
		"kea6": "env " + environment + " kea-dhcp6 -c /etc/kea6.json",
	} {
		node := "s3"
		if strings.HasPrefix(name, "s") {
			node = name
		}
		s := &server{node: a.Node(node), log: "/var/log/" + name + ".log"}
		var err error
		if s.process, err = s.node.Start(s.log, strings.Fields(command)...); err != nil {
			return err
		}
		servers[name] = s
	}
	for name, line := range map[string]string{"s1": "Both servers normal", "s2": "Both servers normal", "s4": "Server starting service", "kea4": "DHCP4_STARTED", "kea6": "DHCP6_STARTED"} {
		if err := servers[name].says(ctx, line, 1); err != nil {
			return err
		}
	}
	return nil
}

// says waits until the server's log has a text n times.
func (s *server) says(ctx context.Context, text string, n int) error {
	return lab.Wait(ctx, func() error {
		log, err := s.node.ReadFile(s.log)
		if err == nil && strings.Count(log, text) < n {
			err = fmt.Errorf("%s lacks %q: %s", s.log, text, log[max(0, len(log)-1500):])
		}
		return err
	})
}
