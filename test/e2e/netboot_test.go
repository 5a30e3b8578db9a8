package e2e

import (
	"context"
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/test/lab"
)

// Where the guests below boot from, which only routing reaches.
const (
	bootServer = lab.Internet4
	bootURL    = "http://" + bootServer
)

// fromDisk is what the boot sector of a guest's disk prints.
const fromDisk = "DISK booted"

// bootVM is a VM that boots by its firmware, with its address and its elements
// <boot>.
func bootVM(name string, firmware lab.Firmware, addr, boots string) lab.Domain {
	return lab.Domain{Name: name, Firmware: firmware, Metadata: bootAnnotation(addr, boots)}
}

func bootAnnotation(addr, boots string) string {
	return "<slash32:network xmlns:slash32='urn:slash32:domain:1'><interface><address ip='" + addr + "'/>" + boots + "</interface></slash32:network>"
}

// TestNetworkBoot lets real firmware boot over routes that only our answers can
// have told it. All guests boot at once.
func TestNetworkBoot(t *testing.T) {
	server, err := world.ServeBoot(t.Context(), world.Inet)
	must(t, err)
	t.Cleanup(func() {
		if err := server.Close(); err != nil {
			t.Error(err)
		}
	})
	b := boots{server}

	for _, tt := range []struct {
		vm     lab.Domain
		loaded []string
	}{
		{
			bootVM("bios-http", lab.BIOS, "198.51.100.60", `<boot for="ipxe" file="`+bootURL+`/boot.ipxe"/>`),
			[]string{"http /boot.ipxe by iPXE", "http /vmlinuz by iPXE", "http /initramfs by iPXE"},
		},
		{
			bootVM("bios-tftp", lab.BIOS, "198.51.100.61", `<boot for="ipxe" file="boot.ipxe" server="`+bootServer+`"/>`),
			[]string{"tftp /boot.ipxe", "tftp /vmlinuz", "tftp /initramfs"},
		},
		{
			bootVM("uefi-http", lab.UEFIHTTP, "198.51.100.62",
				`<boot for="http" file="`+bootURL+`/snponly.efi"/><boot for="ipxe" file="`+bootURL+`/boot.ipxe"/>`),
			[]string{"http /snponly.efi by UefiHttpBoot", "http /boot.ipxe by iPXE", "http /vmlinuz by iPXE", "http /initramfs by iPXE"},
		},
		{
			bootVM("uefi-tftp", lab.UEFIPXE, "198.51.100.63",
				`<boot for="uefi" file="snponly.efi" server="`+bootServer+`"/><boot for="ipxe" file="`+bootURL+`/boot.ipxe"/>`),
			[]string{"http /boot.ipxe by iPXE", "http /vmlinuz by iPXE", "http /initramfs by iPXE", "tftp /snponly.efi"},
		},
	} {
		t.Run(tt.vm.Name, func(t *testing.T) {
			t.Parallel()
			ctx := bootScenario(t)
			addr := address(t, tt.vm)
			frames := b.start(ctx, t, tt.vm)
			b.guest(ctx, t, tt.vm, 1)
			if diff := cmp.Diff(tt.loaded, server.Loaded(addr)); diff != "" {
				t.Errorf("loaded (-want +got):\n%s", diff)
			}
			frames.noLoaderForIPXE(t)
			nic := responderNIC(ctx, t, tt.vm.Name)
			if c := nic.Client; c.Firmware || c.Profile != "routed" {
				t.Errorf("the client is now %+v, want a system with a routed lease", c)
			}
			t.Logf("verdicts: %v", nic.Verdicts)
			must(t, world.Inet.Ping(ctx, addr))
		})
	}
	t.Run("no loop", func(t *testing.T) { t.Parallel(); b.noLoop(t) })
	t.Run("once", func(t *testing.T) { t.Parallel(); b.once(t) })
}

// boots is what the guests above share.
type boots struct{ server *lab.BootServer }

// disk makes a disk for the VM that prints fromDisk when it is booted, and
// returns its path.
func (b boots) disk(t *testing.T, name string) string {
	t.Helper()
	image, err := lab.BootDisk("\r\n" + fromDisk + "\r\n")
	must(t, err)
	path := "/var/lib/lab/" + name + ".raw"
	must(t, world.HV.WriteFile(path, string(image), 0o644))
	return path
}

// noLoop: the only file is iPXE, and the firmware is iPXE already. It gets none
// and goes on to the disk.
func (b boots) noLoop(t *testing.T) {
	ctx := bootScenario(t)
	vm := bootVM("no-loop", lab.BIOS, "198.51.100.64", `<boot file="undionly.kpxe" server="`+bootServer+`"/>`)
	vm.Disk = b.disk(t, vm.Name)
	frames := b.start(ctx, t, vm)
	must(t, world.Console(vm.Name).WaitFor(ctx, fromDisk))
	if loaded := b.server.Loaded(address(t, vm)); loaded != nil {
		t.Errorf("loaded %q, want nothing", loaded)
	}
	frames.noLoaderForIPXE(t)
	want := &control.Client{Profile: "classic", Lease: "198.51.100.64/24 via 198.51.100.1", Vendor: "PXEClient:Arch:00000:UNDI:002001", Firmware: true}
	if diff := cmp.Diff(want, responderNIC(ctx, t, vm.Name).Client); diff != "" {
		t.Errorf("client (-want +got):\n%s", diff)
	}
}

// once: the first boot is from the network, all after it from the disk, whatever
// happens to the responder or to the VM; until the annotation has other files.
func (b boots) once(t *testing.T) {
	ctx := bootScenario(t)
	const script = `<boot for="ipxe" file="` + bootURL + `/%s" once="yes"/>`
	vm := bootVM("once", lab.BIOS, "198.51.100.65", fmt.Sprintf(script, "boot.ipxe"))
	vm.Disk = b.disk(t, vm.Name)
	addr, console := address(t, vm), world.Console(vm.Name)
	frames := b.start(ctx, t, vm)
	b.guest(ctx, t, vm, 1)
	eventually(ctx, t, "it counts as booted", func() error {
		if c := responderNIC(ctx, t, vm.Name).Client; !c.Booted {
			return fmt.Errorf("the client is %+v", c)
		}
		return nil
	})
	first := b.server.Loaded(addr)
	disk := func(times int) {
		t.Helper()
		must(t, printed(ctx, console, fromDisk, times))
		if diff := cmp.Diff(first, b.server.Loaded(addr)); diff != "" {
			t.Errorf("loaded once more (-before +now):\n%s", diff)
		}
	}
	virsh(ctx, t, "reset", vm.Name)
	disk(1)

	killResponder(ctx, t, vm.Name)
	virsh(ctx, t, "reset", vm.Name)
	disk(2)

	frames.stop(t) // its bridge goes
	virsh(ctx, t, "destroy", vm.Name)
	virsh(ctx, t, "start", vm.Name)
	disk(1) // its log is new as well

	must(t, b.server.Add("again.ipxe", "#!ipxe\nchain boot.ipxe\n"))
	virsh(ctx, t, "metadata", vm.Name, "--uri", "urn:slash32:domain:1", "--key", "slash32", "--live", "--set",
		"<network><interface><address ip='"+addr+"'/>"+fmt.Sprintf(script, "again.ipxe")+"</interface></network>")
	eventually(ctx, t, "the responder has the other file", func() error {
		if c := responderNIC(ctx, t, vm.Name).Client; c != nil && c.Booted {
			return fmt.Errorf("the client is %+v", c)
		}
		return nil
	})
	virsh(ctx, t, "reset", vm.Name)
	b.guest(ctx, t, vm, 1)
}

// bootScenario is a scenario with the time that firmware takes.
func bootScenario(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	t.Cleanup(cancel)
	return ctx
}

// start starts the VM, with its DHCP messages recorded from the first.
func (b boots) start(ctx context.Context, t *testing.T, vm lab.Domain) dhcpFrames {
	t.Helper()
	removeAfter(t, vm.Name)
	must(t, world.Define(ctx, vm))
	virsh(ctx, t, "start", vm.Name, "--paused")
	frames := dhcpFrames{record(t, world.HV, "tcpdump", "-l", "-n", "-vvv", "-i", lab.DefaultBridge(vm.Name), "--immediate-mode", "udp port 67 or udp port 68")}
	must(t, lab.Wait(ctx, func() error { return frames.contains("listening on") }))
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("console: %s\nDHCP: %s\nloaded: %q", world.Console(vm.Name).Log(), frames.text(), b.server.Loaded(address(t, vm)))
		}
	})
	virsh(ctx, t, "resume", vm.Name)
	return frames
}

// guest waits until the lab's guest runs for the nth time and has its lease.
func (b boots) guest(ctx context.Context, t *testing.T, vm lab.Domain, n int) {
	t.Helper()
	start := time.Now()
	must(t, printed(ctx, world.Console(vm.Name), "GUEST bound "+address(t, vm)+"/32", n))
	t.Logf("from the network: after %.1f s", time.Since(start).Seconds())
}

// printed waits until the text has been printed n times.
func printed(ctx context.Context, c *lab.Console, text string, n int) error {
	return lab.Wait(ctx, func() error {
		if got := strings.Count(c.Log(), text); got < n {
			return fmt.Errorf("%q has been printed %d times, not %d", text, got, n)
		}
		return nil
	})
}

var addressIP = regexp.MustCompile(`<address ip='([^']+)'`)

func address(t *testing.T, vm lab.Domain) string {
	t.Helper()
	m := addressIP.FindStringSubmatch(vm.Metadata)
	if m == nil {
		t.Fatalf("no address in %s", vm.Metadata)
	}
	return m[1]
}

func responderNIC(ctx context.Context, t *testing.T, name string) control.ResponderNIC {
	t.Helper()
	vm, err := world.Show(ctx, name)
	must(t, err)
	if len(vm.Responder.NICs) != 1 {
		t.Fatalf("the responder of %s is %+v", name, vm.Responder)
	}
	return vm.Responder.NICs[0]
}

// killResponder kills a VM's responder and waits for the next.
func killResponder(ctx context.Context, t *testing.T, name string) {
	t.Helper()
	vm, err := world.Show(ctx, name)
	must(t, err)
	hv(ctx, t, "kill", "-9", strconv.Itoa(vm.Responder.PID))
	eventually(ctx, t, "a new responder is up", func() error {
		now, err := world.Show(ctx, name)
		if err == nil && (!now.Responder.Up || now.Responder.PID == vm.Responder.PID) {
			err = fmt.Errorf("responder: %+v", now.Responder)
		}
		return err
	})
}

// dhcpFrames are DHCP messages as tcpdump prints them.
type dhcpFrames struct{ *recording }

var transaction = regexp.MustCompile(`xid (0x[0-9a-f]+)`)

// noLoaderForIPXE fails the test if a reply to an iPXE has an iPXE as its file.
func (f dhcpFrames) noLoaderForIPXE(t *testing.T) {
	t.Helper()
	messages := regexp.MustCompile(`(?m)^\d\d:\d\d:\d\d`).Split(f.text(), -1)
	ipxe := map[string]bool{}
	replies := 0
	for _, m := range messages {
		x := transaction.FindStringSubmatch(m)
		if x == nil {
			continue
		}
		request := strings.Contains(m, "BOOTP/DHCP, Request")
		if request && strings.Contains(m, "User-Class (77)") { // which OVMF has not
			ipxe[x[1]] = true
		}
		if request || !ipxe[x[1]] {
			continue
		}
		replies++
		if strings.Contains(m, "undionly.kpxe") || strings.Contains(m, "snponly.efi") {
			t.Errorf("iPXE is given iPXE: %s", m)
		}
	}
	if replies < 2 {
		t.Errorf("%d replies to iPXE were seen, want an OFFER and an ACK", replies)
	}
}
