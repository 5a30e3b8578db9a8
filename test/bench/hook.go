package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"time"

	"github.com/slash32/slash32/test/lab"
)

// Rows of the hook's table.
const (
	rowStart50  = "virsh start, p50"
	rowStart99  = "virsh start, p99"
	rowAdds50   = "added to virsh start, p50"
	rowAdds99   = "added to virsh start, p99"
	rowIgnored  = "an operation it ignores, p50"
	rowHookSize = "size of the binary"
)

// starts of one kind of hook per round.
const startsPerRound = 10

// hookTable measures "virsh start" of a paused VM under two libvirtd side by
// side, one with our hook (and the agent), one with a hook that only exits 0,
// in turns.
func hookTable(ctx context.Context, o options, w io.Writer) (err error) {
	exit0, err := exec.LookPath("true")
	if err != nil {
		return fmt.Errorf("find a program that only exits 0: %w", err)
	}
	k := newBook("The hook (virsh start of a paused VM, in turns under two libvirtd)")
	hook := filepath.Join(o.bin, "slash32-hook")
	fi, err := os.Stat(hook)
	if err != nil {
		return fmt.Errorf("find our hook: %w", err)
	}
	const us, peer = "slash32", "exit 0"
	k.add(rowHookSize, "MB", us, float64(fi.Size())/1e6)

	labs := map[string]*lab.Lab{}
	for who, program := range map[string]string{us: hook, peer: exit0} {
		l, err := lab.Up(ctx, lab.Options{BinDir: o.bin, Hook: program})
		if err != nil {
			return fmt.Errorf("bring a lab up: %w", err)
		}
		defer func() { err = errors.Join(err, l.Close()) }()
		labs[who] = l
	}
	if err := labs[us].StartAgent(ctx); err != nil {
		return err
	}
	const vm = "bench"
	// A hook that only exits 0 makes no bridge: there it is made once.
	if _, err := labs[peer].HV.Exec(ctx, "ip", "link", "add", lab.DefaultBridge(vm), "type", "bridge"); err != nil {
		return err
	}
	for who, l := range labs {
		d := lab.Domain{Name: vm, Cheap: true, Metadata: lab.Annotation("ipv4='198.51.100.7'")}
		if err := l.Define(ctx, d); err != nil {
			return fmt.Errorf("%s: %w", who, err)
		}
		if _, err := startOnce(ctx, l, vm); err != nil { // fills caches
			return fmt.Errorf("%s: %w", who, err)
		}
	}
	times := map[string][]float64{}
	for range o.rounds * startsPerRound {
		for _, who := range []string{us, peer} {
			ms, err := startOnce(ctx, labs[who], vm)
			if err != nil {
				return fmt.Errorf("%s: %w", who, err)
			}
			times[who] = append(times[who], ms)
		}
	}
	for who, v := range times {
		k.add(rowStart50, "ms", who, quantile(v, .5))
		k.add(rowStart99, "ms", who, quantile(v, .99))
	}
	k.add(rowAdds50, "ms", us, quantile(times[us], .5)-quantile(times[peer], .5))
	k.add(rowAdds99, "ms", us, quantile(times[us], .99)-quantile(times[peer], .99))

	ignored := map[string]string{us: hook, peer: exit0}
	spent := map[string][]float64{}
	for range 20 * o.rounds {
		for who, program := range ignored {
			cmd := exec.CommandContext(ctx, program, vm, "migrate", "begin", "-")
			t := time.Now()
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("call %s for an operation it ignores: %w", program, err)
			}
			spent[who] = append(spent[who], ms(time.Since(t)))
		}
	}
	for who, v := range spent {
		k.add(rowIgnored, "ms", who, quantile(v, .5))
	}
	k.print(w, []string{us, peer}, []goal{
		{rowAdds50, "≤ 20 ms", atMost(20)},
		{rowAdds99, "≤ 50 ms", atMost(50)},
		{rowIgnored, "≤ 5 ms", atMost(5)},
		{rowHookSize, "≤ 6 MB", atMost(6)},
	})
	return writeJSON(filepath.Join(o.out, "hook.json"), k.figures())
}

func atMost(limit float64) func(float64, func(string) float64) bool {
	return func(ours float64, _ func(string) float64) bool { return ours <= limit }
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1e3 }

// startOnce starts the VM paused, in milliseconds, and ends it again.
func startOnce(ctx context.Context, l *lab.Lab, vm string) (float64, error) {
	t := time.Now()
	if _, err := l.Virsh(ctx, "start", vm, "--paused"); err != nil {
		return 0, err
	}
	spent := ms(time.Since(t))
	_, err := l.Virsh(ctx, "destroy", vm)
	return spent, err
}
