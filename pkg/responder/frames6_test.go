package responder_test

import (
	"net/netip"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/pkg/responder"
	"github.com/slash32/slash32/pkg/wire"
)

var (
	pfx = netip.MustParsePrefix

	onLink6  = ip("2001:db8:1:42::7") // in a prefix that is on the link
	offLink6 = ip("2001:db8:2::7")    // in one that is not
)

// prefixNIC has prefixes of every kind, two of them on their way out.
func prefixNIC() responder.NIC {
	n := fullNIC()
	in := func(d time.Duration) int64 { return epoch.Add(d).Unix() }
	n.V6.Prefixes = responder.Prefixes{
		{Net: pfx("2001:db8:1:42::/64"), Mode: responder.ModeSLAAC, OnLink: true},
		{Net: pfx("2001:db8:9::/64"), Mode: responder.ModeSLAAC, Deprecated: true, Until: in(time.Hour)},
		{Net: pfx("2001:db8:2::/56"), Mode: responder.ModeDelegate, Length: 60, Exclude: pfx("2001:db8:2::/64")},
		{Net: pfx("2001:db8:8::/56"), Mode: responder.ModeDelegate, Length: 60, Deprecated: true, Until: in(2000 * time.Second)},
	}
	n.V6.PREF64, n.V6.AFTR = pfx("64:ff9b::/96"), "aftr.example.org"
	n.V4.Boots = responder.Boots{
		{For: "bios", File: "undionly.kpxe"},
		{For: "uefi", File: "tftp://[2001:db8::7]/snp.efi"},
		{For: "http", File: "http://[2001:db8::7]/snp.efi"},
		{For: "ipxe", File: "http://[2001:db8::7]/boot.ipxe", Params: "console=ttyS0 quiet"},
	}
	return n
}

// set is the messages for one binding.
type set struct {
	nic      responder.NIC
	messages []message
}

func sets() []set {
	return []set{{fullNIC(), messages()}, {prefixNIC(), prefixMessages()}}
}

// prefixMessages are meant for prefixNIC.
func prefixMessages() []message {
	nd := func(src, dst netip.Addr, b []byte) []byte { return ip6Frame(src, dst, wire.ProtoICMPv6, 255, b) }
	ns := func(src, target netip.Addr, options ...byte) []byte {
		return nd(src, wire.SolicitedNode(target), nsMessage(target, options...))
	}
	client, server := opt6(wire.Opt6ClientID, clientDUID), opt6(wire.Opt6ServerID, marks.ServerDUID)
	both := client + server
	pd := func(options ...string) string { return ia6(wire.Opt6IAPD, 8, options...) }
	arch := opt6(wire.Opt6Architecture, "\x00\x07") + oro6(wire.Opt6BootFileURL)
	http := opt6(wire.Opt6VendorClass, "\x00\x00\x01\x57\x00\x20HTTPClient:Arch:00016:UNDI:003001")
	return []message{
		{"pd_rs", nd(guestLL, ip("ff02::2"), ndMessage(133)), responder.RAReply},
		{"pd_rs_unspecified", nd(zero6, ip("ff02::2"), ndMessage(133)), responder.RAMulticast},
		{"pd_ns_on_link", ns(guestLL, onLink6, linkOption()...), responder.NDProxy},
		{"pd_ns_on_link_without_link", ns(ip("2001:db8:1:42::1"), onLink6), responder.NDProxy},
		{"pd_ns_on_link_unicast", nd(guestLL, onLink6, nsMessage(onLink6)), responder.NDProxy},
		{"pd_ns_on_link_dad", ns(zero6, onLink6), responder.NDOwn},
		{"pd_ns_on_link_itself", ns(onLink6, onLink6), responder.NDOwn},
		{"pd_ns_off_link", ns(guestLL, offLink6, linkOption()...), responder.NDOwn},
		{"pd_ns_off_link_dad", ns(zero6, offLink6), responder.NDOwn},
		{"pd_ns_gateway", ns(guestLL, gateway6), responder.NDAdvert},
		{"pd_ns_dad_gateway", ns(zero6, gateway6), responder.NDDefend},
		{"pd_ns_nobody", ns(guestLL, strange6), responder.NDOther},

		{"pd_solicit", client6{kind: wire.DHCP6Solicit, options: client + pd()}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_hint", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("::/62"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_exact", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("2001:db8:2:80::/57"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_taken", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("2001:db8:2::/60"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_foreign", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("2001:db8:bad::/61"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_deprecated", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("2001:db8:8:10::/60"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_exclude", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("::/56")) + oro6(wire.Opt6PDExclude)}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_exclude_within", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("::/56"), oro6(wire.Opt6PDExclude))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_whole", client6{kind: wire.DHCP6Solicit, options: client + pd(prefix6("::/56"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_several", client6{kind: wire.DHCP6Solicit, options: client + pd() + ia6(wire.Opt6IANA, 8) + ia6(wire.Opt6IAPD, 9, prefix6("::/64")) + ia6(wire.Opt6IAPD, 10, prefix6("::/48"))}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_rapid", client6{kind: wire.DHCP6Solicit, options: client + pd() + opt6(wire.Opt6RapidCommit, "")}.frame(), responder.DHCP6RapidReply},
		{"pd_solicit_aftr", client6{kind: wire.DHCP6Solicit, options: client + pd() + oro6(wire.Opt6AFTRName)}.frame(), responder.DHCP6Advertise},
		{"pd_solicit_global_source", client6{kind: wire.DHCP6Solicit, src: guest6, options: client + pd()}.frame(), responder.DHCP6Advertise},
		{"pd_request", client6{kind: wire.DHCP6Request, options: both + pd(prefix6("2001:db8:2:10::/60"))}.frame(), responder.DHCP6Request},
		{"pd_renew_unknown", client6{kind: wire.DHCP6Renew, options: both + pd(prefix6("2001:db8:2:f0::/60"))}.frame(), responder.DHCP6Renew},
		{"pd_renew_foreign", client6{kind: wire.DHCP6Renew, options: both + pd(prefix6("2001:db8:bad::/60"))}.frame(), responder.DHCP6Renew},
		{"pd_renew_deprecated", client6{kind: wire.DHCP6Renew, options: both + ia6(wire.Opt6IANA, 7, addr6(guest6)) + pd(prefix6("2001:db8:8:10::/60"))}.frame(), responder.DHCP6Renew},
		{"pd_renew_two", client6{kind: wire.DHCP6Renew, options: both + pd(prefix6("2001:db8:2:10::/60"), prefix6("2001:db8:2:20::/60"))}.frame(), responder.DHCP6Renew},
		{"pd_rebind", client6{kind: wire.DHCP6Rebind, options: client + pd(prefix6("2001:db8:2:10::/60"))}.frame(), responder.DHCP6Rebind},
		{"pd_confirm", client6{kind: wire.DHCP6Confirm, options: client + pd(prefix6("2001:db8:2:10::/60"))}.frame(), responder.DHCP6NothingToDo},
		{"pd_confirm_addresses", client6{kind: wire.DHCP6Confirm, options: client + ia6(wire.Opt6IANA, 7, addr6(guest6)) + pd(prefix6("2001:db8:bad::/60"))}.frame(), responder.DHCP6Confirm},
		{"pd_release_unknown", client6{kind: wire.DHCP6Release, options: both + pd(prefix6("2001:db8:2:10::/60"))}.frame(), responder.DHCP6Release},
		{"pd_in_na", client6{kind: wire.DHCP6Solicit, options: client + ia6(wire.Opt6IANA, 7, pd(prefix6("2001:db8:2:10::/60")))}.frame(), responder.DHCP6Advertise},
		{"pd_address_in_pd", client6{kind: wire.DHCP6Request, options: both + pd(addr6(strange6))}.frame(), responder.DHCP6Request},
		{"pd_prefix_in_na", client6{kind: wire.DHCP6Request, options: both + ia6(wire.Opt6IANA, 7, prefix6("2001:db8:2:10::/60"))}.frame(), responder.DHCP6Request},
		{"pd_prefix_alone", client6{kind: wire.DHCP6Request, options: both + prefix6("2001:db8:2:10::/60")}.frame(), responder.DHCP6Request},
		{"pd_prefix_short", client6{kind: wire.DHCP6Request, options: both + pd(opt6(wire.Opt6IAPrefix, "short"))}.frame(), responder.DHCP6Malformed},
		{"pd_prefix_129", client6{kind: wire.DHCP6Request, options: both + pd(opt6(wire.Opt6IAPrefix, "\x00\x00\x00\x00\x00\x00\x00\x00\x81"+string(make([]byte, 16))))}.frame(), responder.DHCP6Malformed},

		{"boot6_uefi", client6{kind: wire.DHCP6Solicit, options: client + arch}.frame(), responder.DHCP6Advertise},
		{"boot6_http", client6{kind: wire.DHCP6Solicit, options: client + arch + http}.frame(), responder.DHCP6Advertise},
		{"boot6_ipxe", client6{kind: wire.DHCP6InformationRequest, options: client + arch + opt6(wire.Opt6UserClass, "\x00\x04iPXE")}.frame(), responder.DHCP6Information},
		{"boot6_params", client6{kind: wire.DHCP6InformationRequest, options: client + arch + oro6(wire.Opt6BootFileParam) + opt6(wire.Opt6UserClass, "\x00\x04iPXE")}.frame(), responder.DHCP6Information},
		{"boot6_bios_has_no_url", client6{kind: wire.DHCP6Solicit, options: client + opt6(wire.Opt6Architecture, "\x00\x00") + oro6(wire.Opt6BootFileURL)}.frame(), responder.DHCP6Advertise},
	}
}
