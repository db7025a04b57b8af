import json,sys,glob
for f in sorted(glob.glob('runs/lightning/*/*/log.jsonl')):
    L=[json.loads(l) for l in open(f)]
    print(f[15:], len(L))
    n=8
    for i in range(0,len(L),n):
        c=L[i:i+n]; m=lambda k: sum(x.get(k,float('nan')) for x in c)/len(c)
        print(f"  {c[0]['step']:4d} loss {m('loss'):.5f} D {m('discriminator_loss'):.3f} real {m('discriminator_accuracy_real'):.2f} fake {m('discriminator_accuracy_fake'):.2f} gn {m('grad_norm'):.4f} dgn {m('discriminator_grad_norm'):.2f}")
