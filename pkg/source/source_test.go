package source_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/source"
)

const id = "5b1e2c7c-0000-4000-8000-000000000001"

func xml(metadata string) []byte {
	return []byte(`<domain type='kvm'><name>web1</name><uuid>` + id + `</uuid>` + metadata +
		`<devices><interface type='bridge'><mac address='52:54:00:ab:cd:01'/><source bridge='s32-web1'/></interface></devices></domain>`)
}

const annotation = `<metadata><slash32:network xmlns:slash32='urn:slash32:domain:1' ipv4='203.0.113.42'/></metadata>`

func TestLoad(t *testing.T) {
	for _, c := range []struct {
		name, xml string
		files     map[string]string
		annotated bool
		addr      string // of the first NIC
		problem   string
	}{
		{name: "metadata", xml: string(xml(annotation)), annotated: true, addr: "203.0.113.42"},
		{name: "nothing", xml: string(xml(""))},
		{name: "file", xml: string(xml("")), files: map[string]string{"web1.yaml": "ipv4: 203.0.113.43\n"}, annotated: true, addr: "203.0.113.43"},
		{name: "file by UUID", xml: string(xml("")), files: map[string]string{id + ".yaml": "ipv4: 203.0.113.44\n"}, annotated: true, addr: "203.0.113.44"},
		{name: "metadata wins", xml: string(xml(annotation)), files: map[string]string{"web1.yaml": "ipv4: 203.0.113.43\n"}, annotated: true, addr: "203.0.113.42"},
		{name: "wrong file", xml: string(xml("")), files: map[string]string{"web1.yaml": "ip4: 203.0.113.43\n"}, annotated: true, problem: "web1.yaml:1"},
		{name: "wrong metadata", xml: string(xml(strings.Replace(annotation, "ipv4", "ip4", 1))), annotated: true, problem: "E103"},
		{name: "torn and ours", xml: `<domain xmlns:x='urn:slash32:domain:1'`, annotated: true, problem: "E100"},
		{name: "torn and not ours", xml: `<domain`},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, text := range c.files {
				if err := os.MkdirAll(filepath.Join(dir, "domains.d"), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := os.WriteFile(filepath.Join(dir, "domains.d", name), []byte(text), 0o644); err != nil {
					t.Fatal(err)
				}
			}
			r := source.Load([]byte(c.xml), config.Default(), dir)
			if r.Annotated != c.annotated {
				t.Errorf("annotated %v", r.Annotated)
			}
			fatal := r.Problems.Fatal()
			if (c.problem == "") != (len(fatal) == 0) || !strings.Contains(fatal.Error(), c.problem) {
				t.Fatalf("problems %v, want %q", fatal, c.problem)
			}
			if c.addr != "" && r.VM.NICs[0].Addrs4[0].String() != c.addr {
				t.Errorf("address %v", r.VM.NICs[0].Addrs4)
			}
		})
	}
}

func TestUUID(t *testing.T) {
	if got, ok := source.UUID(xml("")); !ok || got != uuid.MustParse(id) {
		t.Error(got, ok)
	}
	for _, bad := range []string{"", "<uuid>", "<uuid>5b1e2c7c</uuid>", "<uuid>zzzzzzzz-0000-4000-8000-000000000001</uuid>", "<uuid"} {
		if got, ok := source.UUID([]byte(bad)); ok {
			t.Errorf("%q gives %v", bad, got)
		}
	}
}

func FuzzLoad(f *testing.F) {
	f.Add(xml(annotation))
	f.Add(xml(""))
	f.Add([]byte("<uuid>"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		source.UUID(b)
		if r := source.Load(b, config.Default(), dir); r.Annotated && len(r.Problems.Fatal()) == 0 && len(r.VM.NICs) == 0 {
			t.Fatalf("%q: annotated, no problem and no NIC", b)
		}
	})
}
