package doctor

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/kernel"
)

// Kernel is what a Reader and a Keeper need of the kernel.
type Kernel interface {
	Surroundings(ctx context.Context, links []string) (kernel.Surroundings, error)
	Index(link string) int
	Open(ctx context.Context, o kernel.Opening, wanted bool) (bool, error)
}

// Reader reads Facts.
type Reader struct {
	Kernel Kernel
	Root   string // of the files that it reads, "" for /
}

// Read reads the facts for the given guests and configuration.
func (r Reader) Read(ctx context.Context, guests []Guest, c config.Config) (Facts, error) {
	f := Facts{Guests: guests, Forward: c.Forwarding, Coexist: c.Coexist}
	for _, n := range c.Networks {
		if n.Uplink == "auto" {
			f.Auto = true
		} else if !slices.Contains(f.Uplinks, n.Uplink) {
			f.Uplinks = append(f.Uplinks, n.Uplink)
		}
	}
	slices.Sort(f.Uplinks)
	var err error
	if f.Surroundings, err = r.Kernel.Surroundings(ctx, f.Uplinks); err != nil {
		return f, err
	}
	var links []string
	for _, g := range guests {
		links = append(links, g.Bridge)
		if g.Tap != "" {
			links = append(links, g.Tap)
		}
	}
	if f.Networkd, err = r.networkd(links); err != nil {
		return f, err
	}
	f.Manager, err = r.manager(links)
	return f, err
}

// Guests are the guests of the agent's status.
func Guests(s control.Status) []Guest {
	var gs []Guest
	for _, v := range s.VMs {
		for _, n := range v.NICs {
			g := Guest{VM: v.Name, Bridge: n.Bridge, Tap: n.Tap}
			// What is none is left invalid: the status is another process's.
			if len(n.IPv4) > 0 {
				g.IPv4, _ = netip.ParseAddr(n.IPv4[0])
			}
			if len(n.IPv6) > 0 {
				g.IPv6, _ = netip.ParseAddr(n.IPv6[0])
			}
			gs = append(gs, g)
		}
	}
	return gs
}

// maxFile bounds a configuration file of another program's.
const maxFile = 64 << 10

// file reads a file; one that does not exist is empty.
func (r Reader) file(path string) (string, error) {
	f, err := os.Open(filepath.Join("/", r.Root, path))
	if errors.Is(err, fs.ErrNotExist) {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("read the settings of another program: %w", err)
	}
	defer f.Close()
	b, err := io.ReadAll(io.LimitReader(f, maxFile))
	if err != nil {
		return "", fmt.Errorf("read %s: %w", path, err)
	}
	return string(b), nil
}

func (r Reader) exists(path string) bool {
	_, err := os.Stat(filepath.Join("/", r.Root, path))
	return err == nil
}

// runs tells whether a daemon runs: by its unit's control group, as long as systemd
// runs, else by what it keeps in /run.
func (r Reader) runs(unit, state string) bool {
	if !r.exists("run/systemd/system") {
		return r.exists(state)
	}
	return r.exists("sys/fs/cgroup/system.slice/"+unit) || r.exists("sys/fs/cgroup/systemd/system.slice/"+unit)
}

// systemdDirs are where systemd looks for configuration, the first wins
// (networkd.conf(5)).
func systemdDirs() []string {
	return []string{"etc/systemd", "run/systemd", "usr/local/lib/systemd", "usr/lib/systemd", "lib/systemd"}
}

func (r Reader) networkd(links []string) (Networkd, error) {
	n := Networkd{Runs: r.runs("systemd-networkd.service", "run/systemd/netif/state")}
	if !n.Runs {
		return n, nil
	}
	var texts []string
	for _, dir := range systemdDirs() {
		if r.exists(dir + "/networkd.conf") {
			text, err := r.file(dir + "/networkd.conf")
			if err != nil {
				return n, err
			}
			texts = append(texts, text)
			break
		}
	}
	paths := map[string]string{} // drop-ins: the name decides on the order, the directory on which of a name
	for _, dir := range systemdDirs() {
		files, _ := filepath.Glob(filepath.Join("/", r.Root, dir, "networkd.conf.d", "*.conf"))
		for _, path := range files {
			if name := filepath.Base(path); paths[name] == "" {
				paths[name] = dir + "/networkd.conf.d/" + name
			}
		}
	}
	var names []string
	for name := range paths {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		text, err := r.file(paths[name])
		if err != nil {
			return n, err
		}
		texts = append(texts, text)
	}
	n.ForeignRoutes, n.ForeignRules = foreign(texts)
	var err error
	n.Managed, err = r.managed(links, func(index string) (string, error) {
		text, err := r.file("run/systemd/netif/links/" + index)
		return assigned(text, "ADMIN_STATE"), err
	}, func(state string) bool { return state == "configured" || state == "configuring" || state == "pending" })
	return n, err
}

// foreign reads networkd.conf and its drop-ins, in their order.
func foreign(texts []string) (routes, rules bool) {
	routes, rules = true, true
	for _, text := range texts {
		section := ""
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if strings.HasPrefix(line, "[") {
				section = line
			}
			key, value, ok := strings.Cut(line, "=")
			if !ok || section != "[Network]" || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
				continue
			}
			on := !slices.Contains([]string{"0", "no", "n", "false", "f", "off"}, strings.ToLower(strings.TrimSpace(value)))
			switch strings.TrimSpace(key) {
			case "ManageForeignRoutes":
				routes = on
			case "ManageForeignRoutingPolicyRules":
				rules = on
			}
		}
	}
	return routes, rules
}

// assigned is the value of KEY=value in a text.
func assigned(text, key string) string {
	for line := range strings.Lines(text) {
		if k, v, ok := strings.Cut(strings.TrimSpace(line), "="); ok && k == key {
			return v
		}
	}
	return ""
}

// managed are the links whose state, read by index, says that they are managed.
func (r Reader) managed(links []string, state func(index string) (string, error), is func(string) bool) ([]string, error) {
	const most = 64 // links that are looked up: they are all alike
	var out []string
	for _, l := range links[:min(len(links), most)] {
		i := r.Kernel.Index(l)
		if i == 0 {
			continue
		}
		s, err := state(strconv.Itoa(i))
		if err != nil {
			return nil, err
		}
		if is(s) && len(out) < 3 {
			out = append(out, l)
		}
	}
	return out, nil
}

func (r Reader) manager(links []string) ([]string, error) {
	if !r.runs("NetworkManager.service", "run/NetworkManager/devices") {
		return nil, nil
	}
	return r.managed(links, func(index string) (string, error) {
		text, err := r.file("run/NetworkManager/devices/" + index)
		return assigned(text, "managed"), err
	}, func(state string) bool { return state == "true" })
}
