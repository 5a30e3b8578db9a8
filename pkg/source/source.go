// Package source turns one domain's XML into its intent, with the file below
// domains.d that stands in for its metadata. It reads files below the
// configuration directory and nothing else.
package source

import (
	"slices"

	"github.com/google/uuid"

	"github.com/slash32/slash32/pkg/annotation"
	"github.com/slash32/slash32/pkg/config"
	"github.com/slash32/slash32/pkg/intent"
	"github.com/slash32/slash32/pkg/problem"
)

// Result is what one domain's XML comes to.
type Result struct {
	Domain annotation.Domain
	// Annotated tells whether the domain is ours at all. When it is not, and no
	// problem is fatal, the domain is never touched.
	Annotated bool
	VM        intent.VM // valid only when Annotated and no problem is fatal
	Problems  problem.List
}

// Load reads the XML. dir is the configuration directory.
func Load(xml []byte, c config.Config, dir string) Result {
	var r Result
	r.Domain, r.Problems = annotation.Parse(xml)
	if len(r.Problems.Fatal()) > 0 {
		// What can't be parsed but does not name us is somebody else's trouble.
		r.Annotated = annotation.Mentions(xml)
		if !r.Annotated {
			r.Problems = nil
		}
		r.Problems = r.Problems.WithVM(r.Domain.Name)
		return r
	}
	if r.Domain.Network == nil {
		path, b, err := config.DomainFile(dir, r.Domain.Name, r.Domain.UUID.String())
		if err != nil {
			r.Annotated = true
			r.Problems = append(r.Problems, problem.Problem{
				Code: problem.EConfig, VM: r.Domain.Name, File: path,
				What: "cannot read the VM's settings: " + err.Error(),
				Fix:  "make the file readable, or remove it and annotate the VM with virsh metadata",
			})
			return r
		}
		if b == nil {
			return r
		}
		n, ps := annotation.ParseYAML(path, b)
		r.Annotated = true
		r.Problems = append(r.Problems, ps...)
		r.Domain.Network = n
		if len(ps.Fatal()) > 0 || n == nil {
			r.Problems = r.Problems.WithVM(r.Domain.Name)
			return r
		}
	}
	r.Annotated = true
	vm, ps := intent.Derive(r.Domain, c)
	r.VM = vm
	r.Problems = slices.Concat(r.Problems, ps).WithVM(r.Domain.Name)
	return r
}

// UUID is the UUID that an XML names, by a search for the first element of
// that name: cheap enough to ask for every domain on the host.
func UUID(xml []byte) (uuid.UUID, bool) {
	const open, length = "<uuid>", 36
	for i := 0; i+len(open)+length <= len(xml); i++ {
		if xml[i] == '<' && string(xml[i:i+len(open)]) == open {
			id, err := uuid.ParseBytes(xml[i+len(open) : i+len(open)+length])
			return id, err == nil
		}
	}
	return uuid.UUID{}, false
}
