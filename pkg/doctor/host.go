package doctor

import (
	"fmt"
	"slices"
	"strings"

	"github.com/slash32/slash32/pkg/problem"
)

const protocolRA = 9 // RTPROT_RA

func finding(code problem.Code, impact Impact, what, fix string) []Finding {
	return []Finding{{problem.Problem{Code: code, What: what, Fix: fix}, impact}}
}

// legacy tables are not nftables', so their rules are not in the dump.
func (f Facts) legacy() []Finding {
	if !slices.Contains(f.Legacy, "filter") {
		return nil
	}
	return finding(problem.WLegacy, Note, "legacy iptables has a filter table, which is not read; its FORWARD chain may drop what guests send",
		"look at iptables-legacy -S FORWARD; let iptables be iptables-nft (update-alternatives --config iptables)")
}

// bridged frames meet the chains only where br_netfilter says so, and of slash32's
// bridges each has one guest, so that nothing is bridged.
func (f Facts) bridged() []Finding {
	var on []string
	for _, name := range []string{"bridge-nf-call-iptables", "bridge-nf-call-ip6tables"} {
		if f.Settings["net/bridge/"+name] == "1" {
			on = append(on, "net.bridge."+name)
		}
	}
	if len(on) == 0 || len(f.firewalls()) == 0 {
		return nil
	}
	return finding(problem.WBridgeNF, Note, "br_netfilter filters ("+join(on)+"): frames that a bridge of yours carries between its own ports are dropped by the same chains; slash32's bridges have one port",
		"sysctl -w "+on[0]+"=0, if nothing on this host filters bridged frames by iptables")
}

func (f Facts) networkd() []Finding {
	n := f.Networkd
	if !n.Runs {
		return nil
	}
	var found []Finding
	var keys []string
	if n.ForeignRoutes {
		keys = append(keys, "ManageForeignRoutes")
	}
	if n.ForeignRules {
		keys = append(keys, "ManageForeignRoutingPolicyRules")
	}
	if len(keys) > 0 {
		found = finding(problem.WNetworkd, Risk, "systemd-networkd has "+join(keys)+" on: whenever it starts or reconfigures a link it removes policy rules, and routes on links that it manages; the agent puts them back",
			"write [Network], ManageForeignRoutes=no and ManageForeignRoutingPolicyRules=no to /etc/systemd/networkd.conf.d/10-slash32.conf, and systemctl restart systemd-networkd")
	}
	if len(n.Managed) > 0 {
		found = append(found, finding(problem.WNetworkd, Risk, "systemd-networkd manages "+join(n.Managed)+": it removes addresses and routes of slash32's there",
			"write [Match], MACAddress=02:73:6c:33:32:01, [Link] and Unmanaged=yes to /etc/systemd/network/05-slash32.network, and networkctl reload")...)
	}
	return found
}

func (f Facts) manager() []Finding {
	if len(f.Manager) == 0 {
		return nil
	}
	names := []string{"interface-name:s32-*", "interface-name:vnet*"} // as the shipped file has it
	for _, name := range f.Manager {
		if !strings.HasPrefix(name, "s32-") && !strings.HasPrefix(name, "vnet") {
			names = append(names, "interface-name:"+name)
		}
	}
	return finding(problem.WManager, Risk, "NetworkManager manages "+join(f.Manager)+": it may take a tap out of its bridge or addresses off it",
		"write [keyfile] and unmanaged-devices+="+strings.Join(names, ";")+" to /etc/NetworkManager/conf.d/slash32.conf, and nmcli general reload")
}

// reversePath: a strict filter drops what comes by another way than the one to its
// source. On the uplink of the only default route that is nothing of the Internet.
func (f Facts) reversePath() []Finding {
	var found []Finding
	all := f.Settings["net/ipv4/conf/all/rp_filter"]
	for _, link := range f.uplinks(false) {
		own := f.Settings["net/ipv4/conf/"+link+"/rp_filter"]
		if max(all, own) != "1" || link == f.best(false) {
			continue
		}
		found = append(found, finding(problem.WRPFilter, Offline, "rp_filter is strict on uplink "+link+", and the host's default route is not by it: what comes from the Internet there is dropped",
			"sysctl -w net.ipv4.conf."+link+".rp_filter=2")...)
	}
	return found
}

func (f Facts) advertised() []Finding {
	var found []Finding
	var said []string
	for _, d := range f.Defaults {
		conf := "net/ipv6/conf/" + d.Link + "/"
		if !d.IPv6 || d.Protocol != protocolRA || f.Settings[conf+"accept_ra"] != "1" || f.Settings[conf+"forwarding"] != "1" || slices.Contains(said, d.Link) {
			continue
		}
		said = append(said, d.Link)
		found = append(found, finding(problem.WAcceptRA, Risk, "the IPv6 default route by "+d.Link+" is from router advertisements, which the kernel ignores where forwarding is on and accept_ra is 1: it goes when its lifetime ends",
			"sysctl -w net.ipv6.conf."+d.Link+".accept_ra=2")...)
	}
	return found
}

func (f Facts) defaults() []Finding {
	if !f.Auto {
		return nil
	}
	var found []Finding
	for _, six := range []bool{false, true} {
		var words, links []string
		same := true
		first := uint32(0)
		for _, d := range f.Defaults {
			if d.IPv6 != six || slices.Contains(links, d.Link) {
				continue
			}
			if len(links) == 0 {
				first = d.Metric
			}
			same = same && d.Metric == first
			links = append(links, d.Link)
			words = append(words, fmt.Sprintf("%s (metric %d)", d.Link, d.Metric))
		}
		if len(links) < 2 {
			continue
		}
		impact, family := Note, map[bool]string{false: "IPv4", true: "IPv6"}[six]
		if same {
			impact = Risk
		}
		found = append(found, finding(problem.WDefaults, impact, "there are "+family+" default routes by "+join(words)+"; guests' traffic is translated for "+links[0]+" and goes where the kernel sends it",
			"name the uplink in slash32.yaml (networks: {default: {uplink: "+links[0]+"}}), or give the other route a larger metric")...)
	}
	return found
}

func (f Facts) forwarding() []Finding {
	impact := Risk
	if len(f.Guests) > 0 {
		impact = Offline
	}
	var found []Finding
	off := func(six bool, path string) bool {
		if f.Settings[path] != "0" || impact != Offline && f.Forward != "check" || six && len(f.uplinks(true)) == 0 {
			return false
		}
		name := strings.ReplaceAll(path, "/", ".")
		found = append(found, finding(problem.WNoForward, impact, name+" is 0: guests reach nothing beyond this host", "sysctl -w "+name+"=1; with forwarding: manage the agent does it when the first VM starts")...)
		return true
	}
	for _, six := range []bool{false, true} {
		all, dir := "net/ipv4/ip_forward", "net/ipv4/conf/"
		if six {
			all, dir = "net/ipv6/conf/all/forwarding", "net/ipv6/conf/"
		}
		if off(six, all) {
			continue
		}
		for _, link := range f.uplinks(six) {
			off(six, dir+link+"/forwarding")
		}
	}
	return found
}
