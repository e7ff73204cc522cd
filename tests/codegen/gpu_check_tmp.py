import os, sys
os.environ["XLA_PYTHON_CLIENT_PREALLOCATE"]="false"
import types; _p=types.ModuleType("platformdirs"); _p.user_cache_dir=lambda *a,**k:"/tmp/c"; _p.user_cache_path=lambda *a,**k:"/tmp/c"; sys.modules["platformdirs"]=_p
sys.path.insert(0,'.'); sys.path.insert(0,'tests/codegen')
import numpy as np, torch, jax, jax.numpy as jnp, ml_dtypes, triton, warnings
warnings.simplefilter('ignore')
import test_scalars as T
from jaxorch.runtime.source import jit_from_source
cpu=jax.devices('cpu')[0]; gpu=jax.devices('cuda')[0]
print(triton.__version__, jax.__version__, gpu, flush=True)
TD={'bool':torch.bool,'bfloat16':torch.bfloat16,'float16':torch.float16,'float32':torch.float32,'float64':torch.float64,'float8_e4m3fn':torch.float8_e4m3fn,'float8_e5m2':torch.float8_e5m2,**{n:getattr(torch,n) for n in T.INTS}}
def up(a): return torch.from_numpy(np.ascontiguousarray(a).view(np.uint8).copy()).cuda().view(TD[a.dtype.name])
def down(t,d): return t.view(torch.uint8).cpu().numpy().view(d)
def dense(names):
    rng=np.random.default_rng(5)
    out=[]
    for n in names:
        d=T.DTYPES[n]
        if n in T.FLOATS:
            out.append(np.concatenate([rng.normal(0,1,16384),rng.uniform(-20,20,16384),rng.uniform(0.9,1.1,16384),np.exp(rng.uniform(-60,60,16384))*rng.choice([-1,1],16384)]).astype(d))
        else: out.append(T.scattered(rng,d,65536))
    return tuple(out)
def exact(op,names,args):
    res=T.equation(op,names)[2]
    a=args
    if op.label=='pow': a=(a[0],a[1].astype(a[0].dtype))
    w=a
    if T.is_float(T.DTYPES[names[0]]) and not op.exact: w=tuple(x.astype(np.float64) for x in a)
    with jax.default_device(cpu), jax.enable_x64(True):
        f=np.asarray(jax.jit(op.apply)(*w)).astype(res)
    return T.unflushed(op,a,f) if op.exact else f
def xla(op,names,args):
    with jax.enable_x64(True):
        return np.asarray(jax.jit(op.apply)(*[jax.device_put(a,gpu) for a in args]))
def err(op,got,want):
    if not T.is_float(want.dtype): return float((got!=want).sum()), (got!=want)
    u=T.ulps(got,want)
    w=[a.astype(np.float64) for a in (got,want)]
    small=float(ml_dtypes.finfo(want.dtype).tiny)*4
    fl=(np.abs(w[0])<small)&(np.abs(w[1])<small)
    u=np.where(fl,0,u)
    return u.max(), u>max(4,op.ulp,op.ulp64)
with np.errstate(all='ignore'):
  for dt in [*T.FLOATS,*T.INTS,'bool',*T.SMALL_FLOATS]:
    cases=[c for c in T.CASES if c[1][0]==dt]
    src,sig=T.compiled_source(cases)
    k=jit_from_source(src,'kernel')
    for kind in ('edge','dense'):
        use=cases if kind=='edge' else [c for c in cases if not c[0].exact and c[1][0] in T.FLOATS]
        for op,names in use:
            args=T.inputs(names) if kind=='edge' else dense(names)
            n=args[0].size
            s,sg=T.compiled_source([(op,names)])
            kk=jit_from_source(s.replace('i = tl.arange(0, B)','i = tl.program_id(0) * B + tl.arange(0, B)'),'kernel')
            out=torch.zeros(n*T.equation(op,names)[2].itemsize,dtype=torch.uint8,device='cuda').view(TD[T.equation(op,names)[2].name])
            ptrs=[]
            ts=[up(a) for a in args]
            for p in sg:
                if p.startswith('o0'): ptrs.append(out); continue
                nm,idx=p[:-4].rsplit('_',1); i=int(idx)
                ptrs.append(ts[i] if i<len(names) and names[i]==nm else up(T.inputs((nm,))[0][:1].repeat(n)))
            try:
                kk[(n//512,)](*ptrs,B=512)
            except Exception as e:
                print('FAIL',op,names,str(e)[-200:].replace('\n',' '),flush=True); continue
            got=down(out,T.equation(op,names)[2])
            want=exact(op,names,args)
            m,bad=err(op,got,want)
            try: x=xla(op,names,args); mx,bx=err(op,x,want)
            except Exception as e: mx,bx=-1,np.zeros(1); 
            if m>2 or m>mx or bad.any():
                line=f'{kind:5s} {str(op):24s} {"/".join(names)[:30]:30s} ours {m:12.1f} bad {int(bad.sum()):5d}   xla {mx:12.1f} bad {int(bx.sum()):5d}'
                if bad.any():
                    j=np.flatnonzero(bad)[:3]; line+='  '+str([(*[str(a[q]) for a in args],'got',str(got[q]),'want',str(want[q]),'xla',str(x[q]) if mx>=0 else '') for q in j])
                print(line[:420],flush=True)
  # gelu tail
  x=np.linspace(-8,8,1<<15).astype(ml_dtypes.bfloat16)
  g=lambda x: x*0.5*(1+jnp.tanh(0.7978845608*(x+0.044715*x**3)))
  f64=x.astype(np.float64); ref=f64*0.5*(1+np.tanh(0.7978845608*(f64+0.044715*f64**3)))
  xl=np.asarray(jax.jit(g)(jax.device_put(x,gpu))).astype(np.float64)
  src="import triton\nimport triton.language as tl\n\n@triton.jit\ndef kernel(x_ptr,o_ptr,B: tl.constexpr):\n    i = tl.program_id(0)*B+tl.arange(0,B)\n    x = tl.load(x_ptr+i).to(tl.float32)\n    t = 0.7978845608*(x+0.044715*x*x*x)\n    t = tl.inline_asm_elementwise(\"tanh.approx.f32 $0, $1;\", \"=f,f\", [t], dtype=tl.float32, is_pure=True, pack=1)\n    tl.store(o_ptr+i,(x*0.5*(1.0+t)).to(tl.bfloat16))\n"
  kk=jit_from_source(src,'kernel'); xt=up(x); o=torch.zeros_like(xt); kk[(64,)](xt,o,B=512)
  our=down(o,x.dtype).astype(np.float64)
  for nm,v in (('ours',our),('xla',xl)):
    e=np.abs(v-ref); print('gelu',nm,'abs',e.max(),'rel@-1',(e/np.abs(ref))[np.abs(f64+1)<.01].max(),'rel@-2',(e/np.abs(ref))[np.abs(f64+2)<.02].max(),'rel@-3',(e/np.abs(ref))[np.abs(f64+3)<.05].max(),'rel@-4',(e/np.abs(ref))[np.abs(f64+4)<.05].max())
