// SPDX-License-Identifier: Apache-2.0

// The vCenter simulator of govmomi over HTTPS, as strict about sessions as a real vCenter: files in a datastore are
// for those only who are logged in. What only a real one would do by itself is done at /control/:
//
//	revoke            ends all sessions; what is on its way goes on
//	revoke?cut=yes    ends what is on its way, too: a PUT with 401, a GET in its middle
//	maintenance?datacenter=NAME&datastore=NAME&mode=inMaintenance|normal
//	refuse?count=N&status=CODE&method=PUT    the next N requests of this method are answered with a page
//	sessions          how many there are
//	requests          the requests since this was asked last, a line for each: connection, method, target
package main

import (
	"crypto/tls"
	"flag"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"sync"

	"github.com/vmware/govmomi/simulator"
	"github.com/vmware/govmomi/vim25/methods"
	"github.com/vmware/govmomi/vim25/mo"
	"github.com/vmware/govmomi/vim25/soap"
	"github.com/vmware/govmomi/vim25/types"
)

// own is who makes calls on behalf of the control URL: nobody has this session.
func own() *simulator.Context {
	return &simulator.Context{
		Map:     simulator.Map,
		Session: &simulator.Session{UserSession: types.UserSession{Key: "control"}},
	}
}

// A proxy in front of several vCenters leads by a cookie of its own to the one with the session.
const routeCookie = "route"

type gate struct {
	user   string
	routed bool
	inner  http.Handler
	wsdl   http.Handler

	mutex    sync.Mutex
	sessions map[string]bool
	cut      chan struct{}
	refused  map[string]int
	status   int
	requests []string
}

func (g *gate) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if strings.HasPrefix(r.URL.Path, "/control/") {
		g.control(w, r)
		return
	}
	g.note(r)
	if status := g.refuses(r.Method); status != 0 {
		page(w, status)
		return
	}
	if strings.HasPrefix(r.URL.Path, "/folder") {
		g.serveFile(w, r)
		return
	}
	if g.wsdl != nil && r.Method == http.MethodGet {
		g.wsdl.ServeHTTP(w, r)
		return
	}
	// The session of a login is in the answer only.
	g.inner.ServeHTTP(&loginWatcher{ResponseWriter: w, gate: g}, r)
}

func (g *gate) note(r *http.Request) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	g.requests = append(g.requests, fmt.Sprintf("%s\t%s\t%s", r.RemoteAddr, r.Method, r.RequestURI))
}

func (g *gate) serveFile(w http.ResponseWriter, r *http.Request) {
	if !g.loggedIn(r) {
		page(w, http.StatusUnauthorized)
		return
	}
	g.mutex.Lock()
	cut := g.cut
	g.mutex.Unlock()
	body := &cutBody{ReadCloser: r.Body, cut: cut}
	r.Body = body
	// The simulator takes a body that broke off for a whole one.
	answer := &lateAnswer{ResponseWriter: w, body: body, cut: cut, put: r.Method == http.MethodPut}
	g.inner.ServeHTTP(answer, r)
	answer.end()
}

func page(w http.ResponseWriter, status int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(status)
	fmt.Fprintf(w, "<html><body>%d %s: please log in</body></html>\n", status, http.StatusText(status))
}

func (g *gate) refuses(method string) int {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	if g.refused[method] == 0 {
		return 0
	}
	g.refused[method]--
	return g.status
}

func (g *gate) loggedIn(r *http.Request) bool {
	route, err := r.Cookie(routeCookie)
	if g.routed && (err != nil || route.Value != "\"a b\"" && route.Value != "a b") {
		return false
	}
	cookie, err := r.Cookie(soap.SessionCookieName)
	return err == nil && g.isActive(cookie.Value)
}

func (g *gate) isActive(key string) bool {
	found := simulator.Map.SessionManager().SessionIsActive(own(), &types.SessionIsActive{
		SessionID: key, UserName: g.user,
	})
	body, ok := found.(*methods.SessionIsActiveBody)
	return ok && body.Res != nil && body.Res.Returnval
}

func (g *gate) control(w http.ResponseWriter, r *http.Request) {
	query := r.URL.Query()
	switch strings.TrimPrefix(r.URL.Path, "/control/") {
	case "revoke":
		g.revoke(query.Get("cut") != "")
	case "maintenance":
		if err := maintenance(query); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
		}
	case "refuse":
		g.mutex.Lock()
		defer g.mutex.Unlock()
		g.refused[query.Get("method")], _ = strconv.Atoi(query.Get("count"))
		g.status, _ = strconv.Atoi(query.Get("status"))
	case "sessions":
		fmt.Fprint(w, g.countSessions())
	case "requests":
		g.mutex.Lock()
		defer g.mutex.Unlock()
		fmt.Fprint(w, strings.Join(g.requests, "\n"))
		g.requests = nil
	default:
		http.NotFound(w, r)
	}
}

func (g *gate) revoke(cut bool) {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	for key := range g.sessions {
		simulator.Map.SessionManager().TerminateSession(own(), &types.TerminateSession{SessionId: []string{key}})
		delete(g.sessions, key)
	}
	if cut {
		close(g.cut)
		g.cut = make(chan struct{})
	}
}

func (g *gate) countSessions() int {
	g.mutex.Lock()
	defer g.mutex.Unlock()
	count := 0
	for key := range g.sessions {
		if g.isActive(key) {
			count++
		}
	}
	return count
}

func maintenance(query url.Values) error {
	for _, entity := range simulator.Map.All("Datastore") {
		store := entity.(*simulator.Datastore)
		if store.Name == query.Get("datastore") && datacenter(store).Name == query.Get("datacenter") {
			simulator.Map.Update(store, []types.PropertyChange{
				{Name: "summary.maintenanceMode", Val: query.Get("mode")},
			})
			return nil
		}
	}
	return fmt.Errorf("there is no such datastore")
}

func datacenter(entity mo.Entity) *simulator.Datacenter {
	for {
		parent := entity.Entity().Parent
		entity = simulator.Map.Get(*parent).(mo.Entity)
		if found, ok := entity.(*simulator.Datacenter); ok {
			return found
		}
	}
}

func renameFirst(names []string) {
	for _, entity := range simulator.Map.All("Datastore") {
		store := entity.(*simulator.Datastore)
		if store.Name == "LocalDS_0" && datacenter(store).Name == "DC0" {
			datacenter(store).Name = names[0]
			store.Name, store.Summary.Name, store.Info.GetDatastoreInfo().Name = names[1], names[1], names[1]
			return
		}
	}
}

type loginWatcher struct {
	http.ResponseWriter
	gate   *gate
	looked bool
}

func (w *loginWatcher) WriteHeader(status int) {
	w.look()
	w.looked = true
	w.ResponseWriter.WriteHeader(status)
}

func (w *loginWatcher) Write(data []byte) (int, error) {
	if !w.looked {
		w.WriteHeader(http.StatusOK)
	}
	return w.ResponseWriter.Write(data)
}

func (w *loginWatcher) look() {
	for _, cookie := range (&http.Response{Header: w.Header()}).Cookies() {
		if cookie.Name == soap.SessionCookieName {
			w.gate.mutex.Lock()
			w.gate.sessions[cookie.Value] = true
			w.gate.mutex.Unlock()
			if w.gate.routed {
				http.SetCookie(w.ResponseWriter, &http.Cookie{Name: routeCookie, Value: "a b", Path: "/"})
			}
		}
	}
}

// cutBody breaks off when it is cut, between two reads.
type cutBody struct {
	io.ReadCloser
	cut    chan struct{}
	broken bool
}

func (b *cutBody) Read(data []byte) (int, error) {
	count, err := b.ReadCloser.Read(data)
	select {
	case <-b.cut:
		b.broken = true
		return 0, io.ErrUnexpectedEOF
	default:
	}
	return count, err
}

// lateAnswer tells of a PUT what became of it, and ends a GET that is cut.
type lateAnswer struct {
	http.ResponseWriter
	body *cutBody
	cut  chan struct{}
	put  bool
}

func (w *lateAnswer) Write(data []byte) (int, error) {
	select {
	case <-w.cut:
		panic(http.ErrAbortHandler)
	default:
	}
	return w.ResponseWriter.Write(data)
}

func (w *lateAnswer) end() {
	if w.put && w.body.broken {
		page(w.ResponseWriter, http.StatusUnauthorized)
	}
}

func main() {
	listen := flag.String("listen", "127.0.0.1:0", "address")
	certificate := flag.String("certificate", "", "file")
	key := flag.String("key", "", "file")
	user := flag.String("user", "user", "who may log in")
	password := flag.String("password", "", "and how")
	routed := flag.Bool("routed", true, "want a second cookie, as a proxy before several vCenters does")
	rename := flag.String("rename", "", "names for DC0 and its LocalDS_0, with a tab between them")
	wsdl := flag.String("wsdl", "", "directory of what is to be read at /sdk/")
	flag.Parse()

	model := simulator.VPX()
	model.Datacenter, model.Folder = 2, 1
	model.Datastore, model.Host, model.Cluster, model.Machine, model.Portgroup = 2, 1, 0, 0, 0
	defer model.Remove()
	if err := model.Create(); err != nil {
		log.Fatal(err)
	}
	if *rename != "" {
		renameFirst(strings.Split(*rename, "\t"))
	}
	model.Service.Listen = &url.URL{Host: "127.0.0.1:0", User: url.UserPassword(*user, *password)}
	server := model.Service.NewServer()
	defer server.Close()

	pair, err := tls.LoadX509KeyPair(*certificate, *key)
	if err != nil {
		log.Fatal(err)
	}
	listener, err := net.Listen("tcp", *listen)
	if err != nil {
		log.Fatal(err)
	}
	for _, entity := range simulator.Map.All("Datastore") {
		store := entity.(*simulator.Datastore)
		fmt.Printf("%s\t%s\t%s\n", datacenter(store).Name, store.Name, store.Info.GetDatastoreInfo().Url)
	}
	fmt.Println("ready")
	handler := &gate{
		user:     *user,
		routed:   *routed,
		inner:    model.Service.ServeMux,
		sessions: map[string]bool{},
		cut:      make(chan struct{}),
		refused:  map[string]int{},
	}
	if *wsdl != "" {
		handler.wsdl = http.StripPrefix("/sdk/", http.FileServer(http.Dir(*wsdl)))
	}
	log.Fatal(http.Serve(tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}}), handler))
}
