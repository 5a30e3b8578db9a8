package clients

import (
	"os"
	"testing"
)

const (
	// The bus is the guest's own: whoever is in its namespaces may do anything.
	busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <type>system</type>
  <listen>unix:path=/run/dbus/system_bus_socket</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow send_type="method_call"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
`
	managerConfig = `[main]
plugins=keyfile
no-auto-default=*
dhcp=internal
dns=default
rc-manager=file
auth-polkit=root-only
[keyfile]
unmanaged-devices=*,except:interface-name:eth0
[logging]
level=DEBUG
domains=DHCP4,DHCP6,CORE,DEVICE,IP4,IP6,DNS,MB
`
	managerConnection = `[connection]
id=eth0
uuid=00000000-0000-4000-8000-0000000000e0
type=ethernet
interface-name=eth0
[ipv4]
method=auto
[ipv6]
method=auto
addr-gen-mode=eui64
`
)

// startManager runs NetworkManager with its own client, on a bus of the guest's
// own. With /sys read only it does not wait for udev.
func startManager(l *lab) *process {
	need(l.t, "NetworkManager", "network-manager")
	need(l.t, "dbus-daemon", "dbus-daemon")
	l.guest.must(`
		mkdir -p /run/dbus /run/NetworkManager /var/lib/NetworkManager
		rm -rf /etc/NetworkManager /run/dbus/*
		mkdir -p -m 755 /etc/NetworkManager/system-connections
		cat > /run/dbus/config <<-'END'
		` + busConfig + `
		END
		cat > /etc/NetworkManager/NetworkManager.conf <<-'END'
		` + managerConfig + `
		END
		umask 077
		cat > /etc/NetworkManager/system-connections/eth0.nmconnection <<-'END'
		` + managerConnection + `
		END
	`)
	l.guest.start("dbus-daemon", "--config-file=/run/dbus/config", "--nofork", "--nopidfile")
	until(l.t, func() error {
		_, err := os.Stat("/proc/" + l.guest.root() + "/run/dbus/system_bus_socket")
		return err
	})
	return l.guest.start("NetworkManager", "--no-daemon")
}

func manager4() client4 {
	return client4{
		row:   "NetworkManager",
		start: startManager,
		routes: func(addr string) []string {
			return []string{
				"default via " + gateway + " dev eth0 proto dhcp src " + addr + " metric ...",
				gateway + " dev eth0 proto dhcp scope link src " + addr + " metric ...",
			}
		},
		release:  func(l *lab, _ *process) { l.guest.must("nmcli connection down eth0") },
		keeps:    true,
		resolver: []string{"cat /etc/resolv.conf", "nameserver 9.9.9.9", "search example.org eng.example.org"},
		short:    [3]uint32{3, 8, 40},
	}
}

func manager6() client6 {
	return client6{
		row:       "NetworkManager IPv6",
		start:     startManager,
		release:   func(l *lab, _ *process) { l.guest.must("nmcli connection down eth0") },
		keeps:     true,
		preferred: 40,
		resolver:  []string{"cat /etc/resolv.conf", "nameserver 2620:fe::fe"},
	}
}

func TestNetworkManager(t *testing.T)       { t.Parallel(); manager4().live(t) }
func TestNetworkManagerKeeps(t *testing.T)  { t.Parallel(); manager4().keep(t) }
func TestNetworkManager6(t *testing.T)      { t.Parallel(); manager6().live(t) }
func TestNetworkManager6Keeps(t *testing.T) { t.Parallel(); manager6().keep(t) }
