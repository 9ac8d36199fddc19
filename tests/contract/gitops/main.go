// What GitOps tools make of objects: reads a JSON array of them, writes an array of {"kstatus", "argocd"} in its order.
//
// Run by test_gitops.py. The rules are the tools' own: kstatus (Flux, kpt, cli-utils) from its module, and Argo CD's Lua
// interpreter with the health script that the documentation offers for each kind.
//
// Usage: gitops <kind>=<health.lua> ... < objects.json
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"strings"

	lua "github.com/yuin/gopher-lua"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/cli-utils/pkg/kstatus/status"
)

type health struct {
	Status  string `json:"status"`
	Message string `json:"message"`
}

func main() {
	scripts := map[string]string{}
	for _, argument := range os.Args[1:] {
		kind, path, _ := strings.Cut(argument, "=")
		text, err := os.ReadFile(path)
		check(err)
		scripts[kind] = string(text)
	}
	var objects []json.RawMessage
	check(json.NewDecoder(os.Stdin).Decode(&objects))
	found := []map[string]health{}
	for _, raw := range objects {
		object := &unstructured.Unstructured{}
		check(object.UnmarshalJSON(raw))
		seen, err := status.Compute(object)
		check(err)
		told := map[string]health{"kstatus": {seen.Status.String(), seen.Message}}
		if script, ok := scripts[object.GetKind()]; ok {
			told["argocd"] = run(script, object.Object)
		}
		found = append(found, told)
	}
	check(json.NewEncoder(os.Stdout).Encode(found))
}

// A health script has the libraries that Argo CD gives it, which are none of the machine's, and the object as obj.
func run(script string, object map[string]any) health {
	state := lua.NewState(lua.Options{SkipOpenLibs: true})
	defer state.Close()
	for name, open := range map[string]lua.LGFunction{
		lua.BaseLibName: lua.OpenBase, lua.TabLibName: lua.OpenTable, lua.StringLibName: lua.OpenString,
	} {
		check(state.CallByParam(lua.P{Fn: state.NewFunction(open), Protect: true}, lua.LString(name)))
	}
	state.SetGlobal("obj", value(state, object))
	check(state.DoString(script))
	answer, ok := state.Get(-1).(*lua.LTable)
	if !ok {
		check(fmt.Errorf("the script returned no table"))
	}
	return health{lua.LVAsString(answer.RawGetString("status")), lua.LVAsString(answer.RawGetString("message"))}
}

func value(state *lua.LState, from any) lua.LValue {
	switch from := from.(type) {
	case string:
		return lua.LString(from)
	case bool:
		return lua.LBool(from)
	case int64:
		return lua.LNumber(from)
	case float64:
		return lua.LNumber(from)
	case []any:
		table := state.NewTable()
		for _, item := range from {
			table.Append(value(state, item))
		}
		return table
	case map[string]any:
		table := state.NewTable()
		for key, item := range from {
			table.RawSetString(key, value(state, item))
		}
		return table
	}
	return lua.LNil
}

func check(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}
