package cli_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/rogpeppe/go-internal/testscript"

	"github.com/slash32/slash32/pkg/cli"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/control"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/plan"
	"github.com/slash32/slash32/pkg/spool"
)

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){
		"slash32": slash32,
	})
}

// noon is when every script runs.
func noon() time.Time { return time.Date(2026, 1, 2, 12, 0, 0, 0, time.UTC) }

// slash32 is the command over files: the agent's replies are in agent/, by
// operation and VM.
func slash32() {
	work := os.Getenv("WORK")
	os.Exit(cli.Run(context.Background(), cli.Env{
		Stdin: os.Stdin, Stdout: os.Stdout, Stderr: os.Stderr,
		Dirs: spool.Dirs{Config: filepath.Join(work, "etc"), Run: filepath.Join(work, "run")},
		Now:  noon,
		Call: func(_ context.Context, r control.Request) (control.Reply, error) {
			name := r.Op
			if r.VM != "" {
				name += "-" + r.VM
			}
			b, err := os.ReadFile(filepath.Join(work, "agent", name+".json"))
			if _, missing := os.Stat(filepath.Join(work, "agent")); missing != nil {
				return control.Reply{}, fmt.Errorf("ask the agent: %w", fs.ErrNotExist)
			}
			if err != nil {
				return control.Reply{Error: fmt.Sprintf("no running, annotated VM %q", r.VM), Code: 3}, nil
			}
			var reply control.Reply
			if err := json.Unmarshal(b, &reply); err != nil {
				return reply, err
			}
			if reply.Error == "EACCES" {
				return control.Reply{}, fmt.Errorf("ask the agent: %w", fs.ErrPermission)
			}
			return reply, nil
		},
		Facts: func(context.Context, ...string) (plan.Facts, error) {
			if os.Getenv("NOFACTS") != "" {
				return plan.Facts{}, errors.New("open netlink: operation not permitted")
			}
			return plan.Facts{Uplink4: "eth0", Uplink6: "eth0", MTU: map[string]uint16{"eth0": 1500}, Resolvers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}}, nil
		},
		Listeners: func(context.Context) ([]intent.Listener, error) {
			if os.Getenv("NOFACTS") != "" {
				return nil, errors.New("open netlink: operation not permitted")
			}
			return []intent.Listener{{Proto: 6, Addr: netip.MustParseAddrPort("[::]:22"), Both: true}}, nil
		},
		Doctor: func(_ context.Context, s control.Status, _ config.Config) ([]cli.Finding, error) {
			b, err := os.ReadFile(filepath.Join(work, "doctor.json"))
			if errors.Is(err, fs.ErrNotExist) {
				return nil, fmt.Errorf("open netlink: %w", fs.ErrPermission)
			}
			if err != nil {
				return nil, err
			}
			var found []cli.Finding
			err = json.Unmarshal(b, &found)
			for i := range found {
				found[i].What += fmt.Sprintf(" (%d guests)", len(s.VMs))
			}
			return found, err
		},
	}, os.Args[1:]))
}

// TestScripts runs testdata/*.txtar. UPDATE=1 rewrites what they compare.
func TestScripts(t *testing.T) {
	testscript.Run(t, testscript.Params{
		Dir:           "testdata",
		UpdateScripts: os.Getenv("UPDATE") != "",
		Cmds: map[string]func(*testscript.TestScript, bool, []string){
			"declare": declare,
			"code":    code,
		},
		Setup: func(e *testscript.Env) error {
			e.Setenv("WORK", e.WorkDir)
			return nil
		},
	})
}

// declare PHASE UUID NAME FILE makes a domain's XML the declaration of a VM.
func declare(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) != 4 {
		ts.Fatalf("usage: declare PHASE UUID NAME FILE")
	}
	s, err := spool.Open(spool.Dirs{Run: ts.MkAbs("run")})
	ts.Check(err)
	ts.Check(s.WriteDeclaration(spool.Declaration{
		Version: spool.DeclarationVersion, UUID: uuid.MustParse(args[1]), Name: args[2], Generation: 1,
		Phase: spool.Phase(args[0]), At: noon().Add(-time.Second), XML: ts.ReadFile(args[3]),
	}))
}

// code N ARGS... runs slash32 and compares its exit code.
func code(ts *testscript.TestScript, neg bool, args []string) {
	if neg || len(args) < 1 {
		ts.Fatalf("usage: code N ARGS...")
	}
	err := ts.Exec("slash32", args[1:]...)
	got := 0
	var exit interface{ ExitCode() int }
	if errors.As(err, &exit) {
		got = exit.ExitCode()
	} else {
		ts.Check(err)
	}
	if fmt.Sprint(got) != args[0] {
		ts.Fatalf("exit code %d, want %s", got, args[0])
	}
}

// TestManual holds that the pages name every command, key and code.
func TestManual(t *testing.T) {
	for page, words := range map[string][]string{
		"slash32.1":            {"status", "show", "check", "plan", "doctor", "sync", "metrics", "version", "W301", "W302", "W303", "W304", "W305", "W306", "W307", "W308", "W309", "W310", "W311", "W312", "W313", "completion", "SLASH32_CONFIG_DIR", "SLASH32_RUN_DIR"},
		"slash32-hook.8":       {"prepare", "release", "qemu.d"},
		"slash32-responder.8":  {"binding.json", "responder.sock"},
		"slash32d.8":           {"SLASH32_STATE_DIR", "slash32d.sock"},
		"slash32.yaml.5":       {"uplink", "table", "gateway4", "gateway6", "dns", "search", "ntp", "mtu", "lease", "nat", "announce", "isolate", "conflict", "forwarding", "launch", "libvirt", "coexist", "host_services", "local_prefixes", "log_drops", "conf.d", "domains.d"},
		"slash32-annotation.7": {"hostname", "domain", "network", "client", "mtu", "ipv4", "ipv6", "address", "prefix", "dns", "search", "ntp", "route", "nat", "forward", "boot", "option", "portal", "relay", "E100", "E101", "E102", "E103", "E104", "E105", "E106", "E107", "E108", "E109", "E110", "E111", "E112", "E120", "E130", "W101", "W102", "W203", "W208", "W209", "W210"},
	} {
		b, err := os.ReadFile(filepath.Join("../../packaging/man", page))
		if err != nil {
			t.Error(err)
			continue
		}
		text := strings.ReplaceAll(string(b), `\-`, "-")
		// A page with tables says so before its title (man(1), DEFAULTS).
		if !strings.HasPrefix(strings.TrimPrefix(text, "'\\\" t\n"), ".TH ") {
			t.Errorf("%s: no title", page)
		}
		for _, w := range words {
			if !strings.Contains(text, w) {
				t.Errorf("%s: nothing of %s", page, w)
			}
		}
	}
}
