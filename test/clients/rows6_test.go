package clients

// The columns of the matrix of prefixes, beside those of the other.
const (
	iana       column = "IA_NA"
	slaac      column = "SLAAC"
	iapd       column = "IA_PD"     // delegated without a hint
	hinted     column = "hint"      // delegated with one
	leaseFile  column = "in file"   // the lease file has prefix and next hop; there is no agent that would route by it
	delegated  column = "used"      // an address of it on a second link reaches the outside
	oneDefault column = "1 default" // exactly one default route
	resolvers  column = "DNS"
	linkMTU    column = "MTU"
	rapid      column = "rapid"    // rapid commit
	rebooted   column = "reboot"   // the same prefix for a client without memory
	renumbered column = "renumber" // the old prefix is deprecated and the new one there, with nothing done by hand
)

var columns6 = []column{iana, slaac, iapd, hinted, leaseFile, delegated, oneDefault, resolvers, linkMTU, rapid, renew, rebind, rebooted, renumbered, release}

const (
	noRapid   = "sends no rapid commit option"
	noPrefix  = "its script does nothing with a prefix; the test puts an address of it on the second link"
	untilEnd  = "it knows that the old one is deprecated; the address that it made of it is preferred until it ends"
	noDHCP    = "speaks no DHCPv6"
	toKernel  = "leaves the resolvers to others"
	noGuest   = "shows what the router advertises and solicits its neighbours, and configures nothing"
	noMemory  = "has no lease"
	seenInRA  = "as advertised"
	kernelDNS = "the kernel hands them to a daemon"
)

// table6 is the matrix of prefixes.
var table6 = matrix{file: "clients6", columns: columns6, rows: []row{
	{name: "systemd-networkd", pkg: "systemd",
		without: map[column]string{release: noRelease}, remark: map[column]string{resolvers: byState}},
	{name: "dhcpcd", pkg: "dhcpcd-base"},
	{name: "ISC dhclient -6 -N -P", pkg: "isc-dhcp-client",
		without: map[column]string{rapid: noRapid}, remark: map[column]string{delegated: noPrefix}},
	{name: "wide-dhcpv6 dhcp6c", pkg: "wide-dhcpv6-client", remark: map[column]string{renumbered: untilEnd}},
	{name: "Linux SLAAC", pkg: kernelRelease,
		without: map[column]string{iana: noDHCP, iapd: noDHCP, hinted: noDHCP, leaseFile: noDHCP, delegated: noDHCP,
			resolvers: kernelDNS, rapid: noDHCP, renew: noDHCP, rebind: noDHCP, rebooted: noMemory, release: noDHCP}},
	{name: "rdisc6, ndisc6", pkg: "ndisc6",
		without: map[column]string{iana: noGuest, iapd: noGuest, hinted: noGuest, leaseFile: noGuest, delegated: noGuest,
			rapid: noGuest, renew: noGuest, rebind: noGuest, rebooted: noGuest, release: noGuest},
		remark: map[column]string{slaac: seenInRA, resolvers: seenInRA, linkMTU: seenInRA}},
}}
