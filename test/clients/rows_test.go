package clients

// The columns of the matrix of addresses.
const (
	leased    column = "lease"    // the address and the length of its prefix
	route     column = "route"    // the default route and the one to the gateway
	neighbour column = "gateway"  // the gateway's MAC, learned by the guest's own question
	renew     column = "renew"    // RENEWING, by unicast where the protocol has it so
	rebind    column = "rebind"   // REBINDING
	reboot    column = "reboot"   // INIT-REBOOT or CONFIRM with the right address
	wrong     column = "wrong"    // the same with an address that is not the guest's any more
	release   column = "release"  // RELEASE
	settings  column = "settings" // resolvers, MTU and two search domains
)

var columns4 = []column{leased, route, neighbour, renew, rebind, reboot, wrong, release, settings}

const (
	noLeaseFile = "keeps no lease over a restart: it starts with DISCOVER"
	oneShot     = "ends when it has the lease: it does not renew, rebind or release"
	loadTest    = "plays a relay agent that counts answers and configures nothing; \"lease\" is 1200 exchanges in 60 s without a loss, beside a flood with random chaddr, DUID and client identifiers"
	noSearch    = "Debian's script for udhcpc writes the domain and no search list"
	atRenewal   = "refused when it renews"
	routeMTU    = "the MTU is that of its routes, not the interface's"
	noConfirm   = "starts with SOLICIT after a reboot, never with CONFIRM"
	noRelease   = "sends no RELEASE"
	quoted121   = "from option 3 and the mask: dracut 059 quotes the routes of option 121 into one word and cannot read it"
	byState     = "written to /run/systemd/netif, where systemd-resolved reads it"
)

// table is the matrix of one address by lease, of either family.
var table = matrix{file: "clients", columns: columns4, rows: []row{
	{name: "ISC dhclient", pkg: "isc-dhcp-client"},
	{name: "ISC dhclient without 121", pkg: "isc-dhcp-client"},
	{name: "ISC dhclient -6", pkg: "isc-dhcp-client"},
	{name: "dhcpcd", pkg: "dhcpcd-base", remark: map[column]string{settings: routeMTU}},
	{name: "dhcpcd IPv6", pkg: "dhcpcd-base"},
	{name: "udhcpc -O 121", pkg: "busybox-static",
		without: map[column]string{reboot: noLeaseFile},
		remark:  map[column]string{wrong: atRenewal, settings: noSearch}},
	{name: "udhcpc", pkg: "busybox-static",
		without: map[column]string{reboot: noLeaseFile},
		remark:  map[column]string{wrong: atRenewal, settings: noSearch}},
	{name: "systemd-networkd", pkg: "systemd", remark: map[column]string{settings: byState}},
	{name: "systemd-networkd IPv6", pkg: "systemd",
		without: map[column]string{reboot: noConfirm, wrong: noConfirm, release: noRelease},
		remark:  map[column]string{settings: byState}},
	{name: "NetworkManager", pkg: "network-manager", without: map[column]string{release: noRelease}},
	{name: "NetworkManager IPv6", pkg: "network-manager", without: map[column]string{reboot: noConfirm, wrong: noConfirm, release: noRelease}},
	{name: "klibc ipconfig (initramfs-tools)", pkg: "klibc-utils",
		without: map[column]string{renew: oneShot, rebind: oneShot, reboot: noLeaseFile, wrong: noLeaseFile, release: oneShot}},
	{name: "dracut network-legacy", pkg: "dracut-network",
		without: map[column]string{reboot: noLeaseFile, wrong: noLeaseFile, release: noRelease},
		remark:  map[column]string{route: quoted121}},
	{name: "perfdhcp -4", pkg: "kea-admin",
		without: map[column]string{route: loadTest, neighbour: loadTest, renew: loadTest, rebind: loadTest, reboot: loadTest, wrong: loadTest, release: loadTest, settings: loadTest}},
	{name: "perfdhcp -6", pkg: "kea-admin",
		without: map[column]string{route: loadTest, neighbour: loadTest, renew: loadTest, rebind: loadTest, reboot: loadTest, wrong: loadTest, release: loadTest, settings: loadTest}},
}}
