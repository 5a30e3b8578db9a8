package clients

import "testing"

// The initramfs of Debian and Ubuntu with ip=dhcp on the kernel's command line:
// its own function with klibc's client, shell and what else is in there.
func TestInitramfsTools(t *testing.T) {
	t.Parallel()
	const ipconfig, functions = "/usr/lib/klibc/bin/ipconfig", "/usr/share/initramfs-tools/scripts/functions"
	need(t, ipconfig, "klibc-utils")
	l, r := newLab(t, nil), table.row(t, "klibc ipconfig (initramfs-tools)")
	l.guest.must(`
		mkdir /run/bin
		busybox --install -s /run/bin
		cat > /run/init <<-'END'
			export PATH=/usr/lib/klibc/bin:/run/bin
			. ` + functions + `
			quiet=n IP=dhcp
			configure_networking
		END
	`)
	p := l.guest.start("/usr/lib/klibc/bin/sh", "-e", "/run/init")
	<-p.ended
	if code := p.cmd.ProcessState.ExitCode(); code != 0 {
		t.Errorf("exit code %d", code)
	}
	r.shows(leased, "/32", func() { l.has(show4, "inet "+first+"/32...") })
	r.check(route, func() {
		l.has(route4, "default via "+gateway+" dev eth0", gateway+" dev eth0 scope link")
		l.guest.must("busybox ping -c 1 -W 5 " + outside)
	})
	r.check(neighbour, func() { l.knowsGateway(gateway) })
	r.check(settings, func() {
		l.has(link0, "2: eth0@if2: <BROADCAST,MULTICAST,UP,LOWER_UP> mtu "+mtu+" ...")
		l.has("cat /run/net-eth0.conf", "IPV4ADDR='"+first+"'", "IPV4DNS0='9.9.9.9'", "HOSTNAME='web1'", "DNSDOMAIN='example.org'",
			"DOMAINSEARCH='example.org. eng.example.org.'", "ROOTSERVER=...")
	})
}
