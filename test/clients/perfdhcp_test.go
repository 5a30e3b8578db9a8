package clients

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/slash32/slash32/pkg/mac"
	"github.com/slash32/slash32/pkg/wire"
)

// exchanges are 60 s of load: 20 a second, each of two messages (DHCPv4) or four
// (DHCPv6) both ways. The responder's limit is 100 messages a second.
const exchanges = 1200

// perfdhcp starts Kea's load generator in the guest. With -n and a period that is
// longer it waits for the last answers; what has none by then is a loss.
func (l *lab) perfdhcp(arguments string) *process {
	l.t.Helper()
	need(l.t, "perfdhcp", "kea-admin")
	return l.guest.start(append([]string{"perfdhcp"}, strings.Fields(arguments)...)...)
}

var perfCounters = regexp.MustCompile(`(?m)^(sent packets|received packets|drops): (\d+)$`)

// lossless waits for the end of a perfdhcp that must have had an answer to all of
// its messages, and checks what it counted for both halves of the exchange.
func (l *lab) lossless(p *process) {
	l.t.Helper()
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		l.t.Errorf("%s ended with exit code %d", p.name, code)
	}
	want := map[string]string{"sent packets": strconv.Itoa(exchanges), "received packets": strconv.Itoa(exchanges), "drops": "0"}
	found := perfCounters.FindAllStringSubmatch(p.output.String(), -1)
	if len(found) != 2*len(want) {
		l.t.Errorf("%s printed %d counters, want %d:\n%s", p.name, len(found), 2*len(want), p.output)
	}
	for _, m := range found {
		if m[2] != want[m[1]] {
			l.t.Errorf("%s: %s, want %s", p.name, m[0], want[m[1]])
		}
	}
}

// A relay in the guest that asks for the guest itself is answered as if it were
// one, 1200 times out of 1200. What asks for others at the same time is counted
// and changes nothing, for it or for the guest's own client.
func TestPerfdhcp(t *testing.T) {
	t.Parallel()
	l, r := newLab(t, nil), table.row(t, "perfdhcp -4")
	own := udhcpcAsIs()
	client := own.start(l)
	l.has(show4, "inet "+first+"/24...")

	r.shows(leased, strconv.Itoa(exchanges), func() {
		p := l.perfdhcp(fmt.Sprintf("-4 -l %s -R 1 -b mac=%s -r 20 -n %d -p 70 -W 1000000 %s", first, guestMAC, exchanges, gateway))
		others := l.perfdhcp(fmt.Sprintf("-4 -l %s -L 6767 -R 1000 -r 10 -p 60 -W 1 %s", first, gateway))
		l.raw(func(send func([]byte) error) error { return strangers(p.ended, send) })
		l.lossless(p)
		<-others.ended
	})
	l.sees("dhcp4_foreign", exchanges/4)
	l.never("foreign") // its packet filter drops frames from another MAC
	for _, verdict := range []string{"rate_limited", "dhcp4_nak", "dhcp4_decline", "dhcp4_relay"} {
		l.never(verdict)
	}
	before := l.count("dhcp4_ack_renew")
	client.signal(syscall.SIGUSR1)
	l.sees("dhcp4_ack_renew", before)
	l.has(show4, "inet "+first+"/24...")
	l.has(route4, own.routes(first)...)
}

// strangers sends ten frames a second until the end: DISCOVER from another MAC,
// for another MAC, and for the guest with another client identifier.
func strangers(end <-chan struct{}, send func([]byte) error) error {
	random := rand.New(rand.NewPCG(1, 2))
	guest := mac.MustParse(guestMAC)
	tick := time.NewTicker(100 * time.Millisecond)
	defer tick.Stop()
	for i := 0; ; i++ {
		select {
		case <-end:
			return nil
		case <-tick.C:
		}
		stranger := mac.Addr{2, 0, byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32()), byte(random.Uint32())}
		source, chaddr := guest, guest
		switch i % 3 {
		case 0:
			source, chaddr = stranger, stranger
		case 1:
			chaddr = stranger
		}
		if err := send(discover(source, chaddr, random.Uint32())); err != nil {
			return err
		}
	}
}

// discover is a DISCOVER whose client identifier is made from id.
func discover(source, chaddr mac.Addr, id uint32) []byte {
	m := wire.AppendDHCP4(nil, wire.DHCP4{Op: 1, XID: id, CHAddr: chaddr})
	m = wire.AppendOption4(m, wire.Opt4MessageType, []byte{wire.DHCP4Discover})
	m = append(wire.AppendOption4(m, wire.Opt4ClientID, fmt.Appendf(nil, "\x00stranger %08x", id)), wire.Opt4End)
	b := wire.AppendEther(nil, wire.Ether{Dst: mac.Broadcast, Src: source, Type: wire.EtherTypeIPv4})
	b = wire.AppendIPv4(b, wire.IPv4{Src: netip.IPv4Unspecified(), Dst: netip.AddrFrom4([4]byte{255, 255, 255, 255}), Proto: wire.ProtoUDP, TTL: 64}, wire.UDPLen+len(m))
	b = wire.AppendUDP(b, wire.UDP{Src: wire.DHCP4ClientPort, Dst: wire.DHCP4ServerPort}, len(m))
	return append(b, m...)
}

// The same for DHCPv6, where the link is the client whatever DUID it names.
func TestPerfdhcp6(t *testing.T) {
	t.Parallel()
	l, r := newLab(t, nil), table.row(t, "perfdhcp -6")
	l.ready()
	own := dhclient6()
	client := own.start(l)
	l.has(show6, "inet6 "+first6+"/128...")
	l.lacks(show6, "tentative")
	client.kill(syscall.SIGKILL) // both want port 546

	r.shows(leased, strconv.Itoa(exchanges), func() {
		p := l.perfdhcp(fmt.Sprintf("-6 -l eth0 -R 1 -b duid=0003000152540000000001 -e address-only -r 20 -n %d -p 70 -W 1000000 all", exchanges))
		others := l.perfdhcp("-6 -l eth0 -L 5460 -R 1000 -e address-only -r 10 -p 60 -W 1 all")
		l.lossless(p)
		<-others.ended
	})
	for _, verdict := range []string{"rate_limited", "dhcp6_decline", "dhcp6_malformed"} {
		l.never(verdict)
	}
	own.start(l)
	l.sees("dhcp6_confirm", 0)
	l.has(show6, "inet6 "+first6+"/128...")
}
