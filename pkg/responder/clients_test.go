package responder_test

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
	"golang.org/x/tools/txtar"

	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

// guestClient is a DHCPv4 client as it shows on the wire: which options it sends,
// in which order, with what values. Those that run on Debian are in test/clients,
// as themselves.
type guestClient struct {
	name    string
	profile responder.Profile
	flags   uint16
	secs    bool // it counts the seconds since it began

	// The options after the message type.
	discover, request string

	// build makes both messages in place of the above, for clients that share a
	// library with these tests.
	build func(t *testing.T, offer *dhcpv4.DHCPv4) *dhcpv4.DHCPv4
}

// guestClients are from the clients' sources and from captures. Inferred are only
// the place of 108 in Apple's lists and ChromeOS as a whole (dhcpcd's, with 252).
func guestClients() []guestClient {
	const (
		routed, classic = responder.ProfileRouted, responder.ProfileClassic

		msft    = "MSFT 5.0"
		desktop = "DESKTOP-AB12CD3"
		uuid    = "\x00\x7a\x1b\x2c\x3d\x4e\x5f\x60\x71\x82\x93\xa4\xb5\xc6\xd7\xe8\xf9"
		duid    = "\xff\xc5\x6b\x55\x57\x00\x02\x00\x00\xab\x11\x00\x33\xbd\xeb\xf9\x5e\x19\x2c"
	)
	mac61 := opt4(61, "\x01"+string(guestMAC[:]))
	want, server := opt4Addr(50, guest4), opt4Addr(54, gateway4)

	windows := list4(1, 3, 6, 15, 31, 33, 43, 44, 46, 47, 119, 121, 249, 252)
	macOS := list4(1, 121, 3, 6, 15, 119, 252, 114, 108, 95, 44, 46) + opt4(57, "\x05\xdc") + mac61
	iOS := list4(1, 121, 3, 6, 15, 119, 252, 114, 108) + opt4(57, "\x05\xdc") + mac61
	android := opt4(57, "\x05\xdc") + opt4(60, "android-dhcp-14") + opt4(12, "Pixel-8") + list4(1, 3, 6, 15, 26, 28, 51, 58, 59, 43, 114, 108)
	chromeOS := opt4(57, "\x05\xc0") + mac61 + opt4(60, "dhcpcd-6.8.2:Linux") + list4(1, 33, 121, 3, 6, 15, 26, 28, 51, 54, 58, 59, 119, 252)
	freeBSD := mac61 + opt4(12, "freebsd") + list4(1, 28, 2, 121, 3, 15, 6, 12, 119, 26)
	openBSD := mac61 + opt4(12, "puffy")
	openBSDList := list4(1, 3, 6, 12, 15, 28, 119, 121)
	firmware := opt4(57, "\x05\xc0") + opt4(93, "\x00\x00") + opt4(94, "\x01\x02\x01") + opt4(60, "PXEClient:Arch:00000:UNDI:002001") + opt4(77, "iPXE") +
		list4(1, 3, 6, 7, 12, 15, 17, 26, 43, 60, 66, 67, 119, 128, 129, 130, 131, 132, 133, 134, 135, 175, 203) +
		opt4(175, "\xb1\x05\x01\x1a\xf4\x10\x00\x13\x01\x01\x22\x01\x01") + mac61 + opt4(97, uuid)
	uefi := func(class string, arch byte, codes ...uint8) string {
		all := append([]uint8{1, 2, 3, 4, 5, 6, 12, 13, 15, 17, 18, 22, 23, 28, 40, 41, 42, 43, 50, 51, 54, 58, 59, 60}, codes...)
		return list4(all...) + opt4(97, uuid) + opt4(94, "\x01\x03\x00") + opt4(93, "\x00"+string(arch)) + opt4(60, fmt.Sprintf("%s:Arch:%05d:UNDI:003000", class, arch))
	}
	pxe := uefi("PXEClient", 7, 66, 67, 97, 128, 129, 130, 131, 132, 133, 134, 135)
	http := uefi("HTTPClient", 16, 67, 97, 235)
	networkd := opt4(61, duid) + list4(1, 3, 6, 12, 15, 26, 33, 42, 119, 120, 121) + opt4(57, "\x05\xc0") + opt4(12, "core")
	udhcpc := func(version string, codes ...uint8) string {
		return list4(codes...) + opt4(60, "udhcp "+version) + mac61
	}
	dhcpcd := opt4(55, "\x01\x79\x03\x06\x0c\x0f\x1a\x1c\x21\x33\x36\x3a\x3b\x77") + opt4(57, "\x05\xc0") + opt4(61, "\xff\x00\xab\xcd\x01\x00\x01\x00\x01\x32\x99\x60\x07"+string(guestMAC[:]))
	ephemeral := "\x50\x00" + opt4(145, "\x01") // rapid commit has no data

	return []guestClient{
		{name: "windows-11", profile: routed,
			discover: mac61 + opt4(12, desktop) + opt4(60, msft) + windows,
			request:  mac61 + want + server + opt4(12, desktop) + opt4(81, "\x00\x00\x00"+desktop) + opt4(60, msft) + windows},
		{name: "macos-14", profile: routed, secs: true,
			discover: macOS + opt4(51, "\x00\x76\xa7\x00") + opt4(12, "Mac"),
			request:  macOS + want + server + opt4(12, "Mac")},
		{name: "ios-17", profile: routed, secs: true,
			discover: iOS + opt4(51, "\x00\x76\xa7\x00"),
			request:  iOS + want + server},
		{name: "android-14", profile: classic,
			discover: mac61 + "\x50\x00" + android,
			request:  mac61 + want + server + android},
		{name: "chromeos", profile: routed,
			discover: chromeOS,
			request:  want + server + chromeOS},
		{name: "freebsd-14", profile: routed,
			discover: freeBSD,
			request:  server + want + freeBSD},
		{name: "pfsense", profile: routed, // FreeBSD's, with the name of the WAN
			discover: mac61 + opt4(12, "pfSense") + list4(1, 28, 2, 121, 3, 15, 6, 12, 119, 26),
			request:  server + want + mac61 + opt4(12, "pfSense") + list4(1, 28, 2, 121, 3, 15, 6, 12, 119, 26)},
		{name: "openbsd-dhcpleased", profile: routed,
			discover: openBSD + openBSDList,
			request:  openBSD + openBSDList + want + server},
		{name: "openbsd-dhcpleased-ipv6-only", profile: routed,
			discover: openBSD + list4(1, 3, 6, 12, 15, 28, 119, 121, 108),
			request:  openBSD + list4(1, 3, 6, 12, 15, 28, 119, 121, 108) + want + server},
		{name: "ipxe-bios-rom", profile: classic, secs: true,
			discover: firmware,
			request:  firmware + server + want},
		{name: "edk2-pxe", profile: classic, flags: wire.DHCP4Broadcast,
			discover: opt4(57, "\x05\xc0") + pxe,
			request:  want + server + opt4(57, "\xff\x00") + pxe},
		{name: "edk2-http", profile: classic, flags: wire.DHCP4Broadcast,
			discover: opt4(57, "\x05\xc0") + http,
			request:  want + server + opt4(57, "\x05\xc0") + http},
		{name: "talos", profile: routed, build: withLibrary(
			dhcpv4.OptionClasslessStaticRoute, dhcpv4.OptionDomainNameServer, dhcpv4.OptionDNSDomainSearchList,
			dhcpv4.OptionNTPServers, dhcpv4.OptionInterfaceMTU, dhcpv4.OptionHostName, dhcpv4.OptionDomainName)},
		{name: "u-root", profile: classic, build: withLibrary(
			dhcpv4.OptionSubnetMask, dhcpv4.OptionRouter, dhcpv4.OptionDomainName, dhcpv4.OptionDomainNameServer)},
		{name: "flatcar-networkd", profile: routed, secs: true,
			discover: networkd,
			request:  opt4(61, duid) + list4(1, 3, 6, 12, 15, 26, 33, 42, 119, 120, 121) + opt4(57, "\x05\xc0") + server + want + opt4(12, "core")},
		{name: "gokrazy", profile: classic,
			discover: opt4(12, "gokrazy") + mac61 + list4(6, 3, 1, 15),
			request:  want + opt4(12, "gokrazy") + mac61 + list4(6, 3, 1, 15) + server},
		{name: "lwip", profile: classic,
			discover: opt4(57, "\x05\xdc") + list4(1, 3, 28, 6) + opt4(12, "lwip"),
			request:  opt4(57, "\x05\xdc") + want + server + list4(1, 3, 28, 6) + opt4(12, "lwip")},
		{name: "alpine-udhcpc", profile: classic,
			discover: opt4(57, "\x02\x40") + udhcpc("1.36.1", 1, 3, 6, 12, 15, 28, 42),
			request:  want + server + opt4(57, "\x02\x40") + udhcpc("1.36.1", 1, 3, 6, 12, 15, 28, 42)},
		{name: "cirros-udhcpc", profile: routed,
			discover: opt4(57, "\x02\x40") + udhcpc("1.32.1", 1, 3, 6, 12, 15, 28, 42, 121),
			request:  want + server + opt4(57, "\x02\x40") + udhcpc("1.32.1", 1, 3, 6, 12, 15, 28, 42, 121)},
		{name: "cloud-init-dhcpcd", profile: routed,
			discover: dhcpcd + ephemeral,
			request:  want + server + dhcpcd + opt4(145, "\x01")},
	}
}

// withLibrary makes the messages of clients that use the same library, as its
// client does: what is asked for comes after what it asks for itself.
func withLibrary(codes ...dhcpv4.OptionCode) func(*testing.T, *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	return func(t *testing.T, offer *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
		t.Helper()
		with := []dhcpv4.Modifier{
			dhcpv4.WithOption(dhcpv4.OptMaxMessageSize(1500)), dhcpv4.WithRequestedOptions(codes...),
			dhcpv4.WithTransactionID(dhcpv4.TransactionID{0x11, 0x22, 0x33, 0x44}),
		}
		m, err := dhcpv4.NewDiscovery(guestMAC[:], with...)
		if offer != nil {
			m, err = dhcpv4.NewRequestFromOffer(offer, with...)
		}
		if err != nil {
			t.Fatal(err)
		}
		return m
	}
}

// frame is the client's DISCOVER, or its REQUEST for the offer.
func (c guestClient) frame(t *testing.T, offer *dhcpv4.DHCPv4) []byte {
	t.Helper()
	if c.build != nil {
		return udp4Frame(zero4, all4, wire.UDP{Src: 68, Dst: 67}, c.build(t, offer).ToBytes())
	}
	m := client4{kind: wire.DHCP4Discover, m: wire.DHCP4{Flags: c.flags}, options: c.discover}
	if offer != nil {
		m.kind, m.options = wire.DHCP4Request, c.request
	}
	b := m.payload()
	if c.secs {
		binary.BigEndian.PutUint16(b[8:], 1)
	}
	for len(b) < wire.DHCP4MinLen {
		b = append(b, 0)
	}
	return udp4Frame(zero4, all4, wire.UDP{Src: 68, Dst: 67}, b)
}

// clientNIC has something for everybody: what decides is what a client asks for.
func clientNIC() responder.NIC {
	n := fullNIC()
	n.MTU = 1400
	n.Portal = "https://portal.example.org/api"
	n.V4.Client, n.V4.V6Only = "auto", 1800
	n.V4.Boots = []responder.Boot{
		{For: "bios", File: "undionly.kpxe", Server: ip("203.0.113.5")},
		{For: "uefi", File: "ipxe.efi", Server: ip("203.0.113.5")},
		{For: "http", File: "http://203.0.113.5/ipxe.efi"},
		{For: "ipxe", File: "http://203.0.113.5/boot.ipxe"},
	}
	return n
}

// TestGoldenClients has what each client is told, in words.
func TestGoldenClients(t *testing.T) {
	const file = "testdata/clients.txtar"
	l := mustCompile(t, clientNIC())
	got := &txtar.Archive{Comment: []byte("What each client of clients_test.go asks and what it is told.\nWrite it anew with go test -run Golden -update.\n")}
	for _, c := range guestClients() {
		var text strings.Builder
		var g responder.Guest
		var offer *dhcpv4.DHCPv4
		for _, want := range []responder.Verdict{responder.DHCP4Offer, responder.DHCP4Ack} {
			frame := c.frame(t, offer)
			reply, v := l.Respond(&g, epoch, frame, make([]byte, responder.MaxReply))
			if v != want || g.Profile != c.profile {
				t.Fatalf("%s: %s with a %s lease, want %s with a %s one", c.name, v, g.Profile, want, c.profile)
			}
			asked, told := readRequest(t, frame), read4(t, reply)
			checkClient(t, c, asked, told)
			fmt.Fprintf(&text, "asks %v, wants %v\n%s %s, %s\n", asked.order, []byte(asked.options[55]), v, g.Profile, told.words())
			var err error
			if offer, err = dhcpv4.FromBytes(reply[wire.EtherLen+wire.IPv4Len+wire.UDPLen:]); err != nil {
				t.Fatalf("%s: %v", c.name, err)
			}
		}
		got.Files = append(got.Files, txtar.File{Name: c.name, Data: []byte(text.String())})
	}
	if *update {
		if err := os.WriteFile(file, txtar.Format(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := txtar.ParseFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if d := cmp.Diff(string(txtar.Format(want)), string(txtar.Format(got))); d != "" {
		t.Errorf("(-want +got):\n%s", d)
	}
}

// readRequest is read4 for a client's message, which has no checksum.
func readRequest(t *testing.T, frame []byte) told4 {
	t.Helper()
	r := told4{options: map[uint8]string{}}
	m, ok := wire.ParseDHCP4(frame[wire.EtherLen+wire.IPv4Len+wire.UDPLen:])
	if !ok {
		t.Fatalf("not a DHCP message: %x", frame)
	}
	o := m.Options()
	for o.Next() {
		r.order = append(r.order, o.Code)
		r.options[o.Code] += string(o.Data)
	}
	if o.Malformed() {
		t.Errorf("malformed options: %x", frame)
	}
	return r
}

// checkClient checks what holds for each client, whatever the golden says.
func checkClient(t *testing.T, c guestClient, asked, told told4) {
	t.Helper()
	most := 576
	if s := asked.options[57]; s != "" {
		most = max(most, int(binary.BigEndian.Uint16([]byte(s))))
	}
	if told.packet > min(most, 1400) {
		t.Errorf("%s: a packet of %d bytes, and it takes %d", c.name, told.packet, most)
	}
	to := guest4
	if c.flags&wire.DHCP4Broadcast != 0 {
		to = all4
	}
	if told.dst != to || told.YIAddr != guest4 {
		t.Errorf("%s: %s is told to %s", c.name, told.YIAddr, told.dst)
	}
	mask := "\xff\xff\xff\xff"
	if c.profile == responder.ProfileClassic {
		mask = "\xff\xff\xff\x00"
	}
	if told.options[1] != mask {
		t.Errorf("%s: mask % x", c.name, told.options[1])
	}
	if told.options[61] != asked.options[61] {
		t.Errorf("%s: client identifier % x came back as % x", c.name, asked.options[61], told.options[61])
	}
	for _, code := range []uint8{1, 3, 51, 53, 54, 58, 59, 121} {
		if told.options[code] == "" {
			t.Errorf("%s: no option %d", c.name, code)
		}
	}
	if microsoft := strings.HasPrefix(asked.options[60], "MSFT"); microsoft != (told.options[249] != "") {
		t.Errorf("%s: option 249 is % x", c.name, told.options[249])
	}
	for _, code := range []uint8{108, 114} { // they change what a client does
		if told.options[code] != "" && !strings.Contains(asked.options[55], string(rune(code))) {
			t.Errorf("%s: option %d, unasked", c.name, code)
		}
	}
}

// words is a reply as a person reads it, its options in the order sent.
func (r told4) words() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d bytes to %s, yiaddr %s, siaddr %s, file %q\n", r.packet, r.dst, r.YIAddr, r.SIAddr, r.file)
	for _, code := range r.order {
		fmt.Fprintf(&b, "  %d: %s\n", code, optionWords(code, r.options[code]))
	}
	return strings.TrimSuffix(b.String(), "\n")
}

// optionWords is an option's data by its kind (RFC 2132, 3442).
func optionWords(code uint8, data string) string {
	switch code {
	case 1, 3, 6, 28, 42, 54:
		var s []string
		for ; len(data) >= 4; data = data[4:] {
			s = append(s, netip.AddrFrom4([4]byte([]byte(data[:4]))).String())
		}
		return strings.Join(s, " ")
	case 51, 58, 59, 108:
		return fmt.Sprint(binary.BigEndian.Uint32([]byte(data)))
	case 26:
		return fmt.Sprint(binary.BigEndian.Uint16([]byte(data)))
	case 121, 249:
		var routes dhcpv4.Routes
		if err := routes.FromBytes([]byte(data)); err != nil {
			return err.Error()
		}
		return routes.String()
	case 12, 15, 60, 66, 67, 114:
		return fmt.Sprintf("%q", data)
	}
	return fmt.Sprintf("% x", data)
}
