package doctor_test

import (
	"path/filepath"
	"strings"
	"testing"

	"github.com/slash32/slash32/pkg/cli"
	"github.com/slash32/slash32/test/wait"
)

// has tells whether doctor finds this.
func (l *lab) has(code, what string) bool {
	l.Helper()
	list, _ := l.findings()
	for _, f := range list {
		if string(f.Code) == code && strings.Contains(f.What, what) {
			return true
		}
	}
	return false
}

func (l *lab) found() (list []cli.Finding) {
	l.Helper()
	list, _ = l.findings()
	return list
}

// ship copies a shipped file to where make install would put one for the host.
func (l *lab) ship(from, to string) {
	l.Helper()
	path, err := filepath.Abs(filepath.Join("../../packaging", from))
	if err != nil {
		l.Fatal(err)
	}
	l.host.do("install -D -m 0644 " + path + " " + to)
}

// writes is how often the agent has written to the kernel.
func (l *lab) writes() uint64 { l.Helper(); return l.status().Writes }

// TestNetworkManager: it takes the bridge, and with the shipped file leaves it alone.
func TestNetworkManager(t *testing.T) {
	l := newLab(t)
	l.bus()
	l.host.do(`
		rm -rf /etc/NetworkManager
		mkdir -p /etc/NetworkManager/system-connections /run/NetworkManager /var/lib/NetworkManager
		printf '[main]\nplugins=keyfile\nno-auto-default=*\nauth-polkit=root-only\n' >/etc/NetworkManager/NetworkManager.conf
		mount -o remount,ro /sys # it does not wait for udev then`)
	l.host.daemon("NetworkManager --no-daemon")
	wait.For(t, limit, "NetworkManager to take the bridge", func() bool { return l.has("W308", "s32-web1") })
	wait.For(t, limit, "the warning in status", func() bool { return strings.Contains(strings.Join(l.status().Warnings, "\n"), "W308") })

	l.ship("NetworkManager/conf.d/slash32.conf", "/etc/NetworkManager/conf.d/slash32.conf")
	l.host.do("kill -HUP $(pidof NetworkManager)")
	wait.For(t, limit, "NetworkManager to leave the links alone", func() bool {
		out, err := l.host.try("nmcli -g DEVICE,STATE device")
		return err == nil && strings.Contains(out, "s32-web1:unmanaged\n") && strings.Contains(out, "vnet0:unmanaged\n")
	})
	wait.For(t, limit, "doctor to find it so", func() bool { return !l.has("W308", "") })
	l.open("beside NetworkManager")
}

// TestNetworkd: it manages the bridge and removes what is foreign; with the shipped files
// it does neither.
func TestNetworkd(t *testing.T) {
	l := newLab(t)
	l.bus()
	l.host.do(`
		mkdir -p /run/systemd/network /run/systemd/netif/links /run/systemd/netif/leases /run/systemd/netif/lldp
		chown -R systemd-network: /run/systemd/netif
		rm -rf /etc/systemd/network /etc/systemd/networkd.conf*
		printf '[Match]\nName=s32-*\n[Network]\nIPv6AcceptRA=no\nLinkLocalAddressing=no\nConfigureWithoutCarrier=yes\n' >/run/systemd/network/99-all.network
		mount -o remount,ro /sys # it does not wait for udev then`)
	start := func() {
		l.host.daemon("env SYSTEMD_LOG_TARGET=console DBUS_SYSTEM_BUS_ADDRESS=unix:path=/run/dbus/system_bus_socket /lib/systemd/systemd-networkd")
	}
	start()
	wait.For(t, limit, "networkd to take the bridge", func() bool { return l.has("W307", "manages s32-web1") })
	if !l.has("W307", "ManageForeignRoutes and ManageForeignRoutingPolicyRules on") {
		t.Errorf("doctor finds %v", l.found())
	}
	// It removes what is ours, and the agent puts it back.
	before := l.writes()
	l.host.do("networkctl reconfigure s32-web1")
	wait.For(t, limit, "the agent to write", func() bool { return l.writes() > before })
	l.open("after the repair")

	l.ship("networkd/10-slash32.conf", "/etc/systemd/networkd.conf.d/10-slash32.conf")
	l.ship("networkd/05-slash32.network", "/etc/systemd/network/05-slash32.network")
	l.host.do("kill $(pidof systemd-networkd)")
	wait.For(t, limit, "the end of networkd", func() bool { _, err := l.host.try("pidof systemd-networkd"); return err != nil })
	start()
	wait.For(t, limit, "networkd to leave the bridge alone", func() bool {
		out, err := l.host.try("networkctl --no-legend list s32-web1")
		return err == nil && strings.Contains(out, "unmanaged")
	})
	wait.For(t, limit, "doctor to find it so", func() bool { return !l.has("W307", "") })
	before = l.writes()
	l.host.do("networkctl reload && networkctl reconfigure up0 && slash32 sync")
	if after := l.writes(); after != before {
		t.Errorf("the agent had to write %d times", after-before)
	}
	l.open("beside networkd")
}
