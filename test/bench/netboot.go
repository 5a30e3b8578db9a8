package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/slash32/slash32/pkg/marks"
	"github.com/slash32/slash32/test/lab"
)

// Columns of the table of network boot: what the responder says, and the same
// without what spares iPXE its waits.
const (
	bootShipped = "slash32"
	bootNoRA    = "no RA"
	bootNo175   = "no 175"
	bootNeither = "neither"
)

// maxBoots bounds the rounds: one is two to three minutes.
const maxBoots = 2

// netbootTable measures the time from power on to the guest's own lease for VMs
// that boot from the network, one after the other.
func netbootTable(ctx context.Context, o options, w io.Writer) (err error) {
	l, err := lab.Up(ctx, lab.Options{BinDir: o.bin})
	if err != nil {
		return fmt.Errorf("bring a lab up: %w", err)
	}
	defer func() { err = errors.Join(err, l.Close()) }()
	if err := l.StartAgent(ctx); err != nil {
		return err
	}
	server, err := l.ServeBoot(ctx, l.Inet)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, server.Close()) }()

	k := newBook("Network boot (power on to the lease of the guest's system; SeaBIOS or OVMF, iPXE, a script, kernel and initramfs; a VM with an IPv4 address only)")
	const url = "http://" + lab.Internet4
	script := "<boot for='ipxe' file='" + url + "/boot.ipxe'/>"
	for range min(o.rounds, maxBoots) {
		for _, boot := range []struct {
			what     string
			firmware lab.Firmware
			elements string
		}{
			{"BIOS, HTTP", lab.BIOS, script},
			{"UEFI, HTTP boot", lab.UEFIHTTP, "<boot for='http' file='" + url + "/snponly.efi'/>" + script},
		} {
			for _, who := range []string{bootShipped, bootNoRA, bootNo175, bootNeither} {
				s, err := netboot(ctx, l, boot.firmware, boot.elements, who)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", boot.what, who, err)
				}
				fmt.Fprintf(os.Stderr, "bench: network boot, %s, %s: %.1f s\n", boot.what, who, s)
				k.add(boot.what, "s", who, s)
			}
		}
	}
	k.notes = append(k.notes, "no RA: router solicitations are dropped; no 175: option 175 says to wait for a ProxyDHCP server")
	k.print(w, []string{bootShipped, bootNoRA, bootNo175, bootNeither}, nil)
	return writeJSON(filepath.Join(o.out, "netboot.json"), k.figures())
}

// netboot boots a VM once and returns the seconds it took.
func netboot(ctx context.Context, l *lab.Lab, firmware lab.Firmware, elements, who string) (seconds float64, err error) {
	const name, addr = "bench", "198.51.100.7"
	if who == bootNo175 || who == bootNeither {
		elements += "<option code='175' type='hex' value='b0:01:00'/>"
	}
	d := lab.Domain{Name: name, Firmware: firmware, Metadata: "<slash32:network xmlns:slash32='" + marks.Namespace + "'><interface><address ip='" +
		addr + "'/>" + elements + "</interface></slash32:network>"}
	if err := l.Define(ctx, d); err != nil {
		return 0, err
	}
	if _, err := l.Virsh(ctx, "start", name, "--paused"); err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, l.Remove(ctx, name)) }()
	if who == bootNoRA || who == bootNeither {
		out, err := l.Virsh(ctx, "domiflist", name)
		if err != nil {
			return 0, err
		}
		tap, _, _ := strings.Cut(strings.TrimSpace(out), " ")
		rules := "table netdev deaf { chain in { type filter hook ingress device " + tap + " priority 0; icmpv6 type nd-router-solicit drop; }; }"
		if _, err := l.HV.Exec(ctx, "nft", rules); err != nil {
			return 0, err
		}
		defer func() {
			_, failed := l.HV.Exec(ctx, "nft", "delete", "table", "netdev", "deaf")
			err = errors.Join(err, failed)
		}()
	}
	boot, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	begin := time.Now()
	if _, err := l.Virsh(ctx, "resume", name); err != nil {
		return 0, err
	}
	if err := l.Console(name).WaitFor(boot, "GUEST bound "+addr); err != nil {
		return 0, err
	}
	return time.Since(begin).Seconds(), nil
}
